"""Where statements come from: what the settings say of an endpoint, as a feed."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from flows.errors import SettingsError
from kb.budget import BanFile
from kb.endpoint import Endpoint, Namespaces, Properties
from kb.entity_data import EntityDataFeed
from kb.errors import BadTermError
from kb.feed import SparqlFeed
from kb.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flows.settings import Settings
    from kb.relations import Relations

USER_AGENT = "factsync/0.1 ({contact})"


@contextlib.contextmanager
def opened_feed(settings: Settings, relations: Relations) -> Iterator[SparqlFeed | EntityDataFeed]:
    """A source of statements: the endpoint that is configured, or the local store while the block lasts.

    Raises:
        ContactMissingError: the endpoint is public and no contact is set.
        SettingsError: the endpoint's settings do not fit together.
        StoreError: the local store is empty or does not start.
    """
    if settings.is_embedded:
        with LocalStore(settings.store_dir).serve() as url:
            local = replace(Endpoint.local(url), layout=settings.endpoint_layout)
            yield SparqlFeed(_worded(local, settings), relations=relations)
        return
    endpoint = endpoint_of(settings)
    bans = BanFile(settings.home / "bans.json")
    index = SparqlFeed(endpoint, relations=relations, bans=bans)
    if settings.entity_data is None:
        yield index
        return
    documents = replace(endpoint, url=settings.entity_data)
    yield EntityDataFeed(documents, index, relations=relations, bans=bans)


def endpoint_of(settings: Settings) -> Endpoint:
    """The SPARQL endpoint that the settings describe.

    Raises:
        SettingsError: a URL, a concept base or a property is none.
    """
    try:
        endpoint = Endpoint(
            settings.endpoint,
            user_agent=USER_AGENT.format(contact=settings.contact) if settings.contact else "",
            timeout_s=settings.endpoint_timeout_s,
            parallel=settings.endpoint_parallel,
            max_attempts=settings.endpoint_attempts,
            layout=settings.endpoint_layout,
        )
    except BadTermError as error:
        raise SettingsError(f"{error} FACTSYNC_ENDPOINT is a URL, or `embedded`.") from error
    return _worded(endpoint, settings)


def _worded(endpoint: Endpoint, settings: Settings) -> Endpoint:
    """The endpoint, with the ids and languages of the settings."""
    try:
        return replace(
            endpoint,
            namespaces=Namespaces.of(settings.wikibase) if settings.wikibase else Namespaces(),
            properties=Properties(**settings.wikibase_properties),
            languages=tuple(settings.languages),
        )
    except (BadTermError, TypeError) as error:
        known = ", ".join(Properties.__dataclass_fields__)
        raise SettingsError(
            f"{error} FACTSYNC_WIKIBASE is a URL; FACTSYNC_WIKIBASE_PROPERTIES is JSON such as "
            f'{{"start": "P5"}} with any of: {known}.'
        ) from error
