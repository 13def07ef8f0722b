# ruff: noqa: INP001 - an example that is run by its path
"""An automation of your own: post to a webhook when a night is rejected. Run it once against your server.

PREFECT_API_URL=http://127.0.0.1:4200/api python docs/pools/notify.py https://chat.example.org/hooks/abc
"""

import sys
from datetime import timedelta

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture


def automation(webhook_block_id: object) -> AutomationCore:
    """Call the webhook for every `factsync.rejected` event."""
    return AutomationCore(
        name="factsync: say that a night was rejected",
        trigger=EventTrigger(
            expect={"factsync.rejected"},
            match={"prefect.resource.id": "factsync.model.*"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[
            CallWebhook(
                block_document_id=webhook_block_id,
                payload='{"text": "rejected {{ event.payload.checkpoint }}: {{ event.payload.reason }}"}',
            )
        ],
    )


def main(url: str) -> None:
    """Keep the address in a block and make the automation."""
    webhook = Webhook(method="POST", url=url, headers={"Content-Type": "application/json"})
    block = webhook.save("factsync-rejected", overwrite=True)
    with get_client(sync_client=True) as client:
        client.create_automation(automation(block))


if __name__ == "__main__":
    main(sys.argv[1])
