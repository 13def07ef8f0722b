"""Records in CounterFact's layout, for tests that need data of its shape."""

CITIES = ("Berlin", "Paris", "Rome", "Madrid", "Oslo", "Vienna", "Prague", "Lisbon", "Athens", "Dublin")


def records(count, relations):
    """Make records, one a subject, of relations in turn.

    Args:
        count: how many.
        relations: property ids and their prompts, with `{}` for the subject.
    """
    made = []
    for number in range(count):
        property_id, prompt = relations[number % len(relations)]
        subject = f"{CITIES[number % 10]} {number // 10}"
        made.append(
            {
                "case_id": number,
                "requested_rewrite": {
                    "prompt": prompt,
                    "relation_id": property_id,
                    "subject": subject,
                    "target_new": {"str": CITIES[(number + 3) % 10]},
                    "target_true": {"str": CITIES[(number + 5) % 10]},
                },
                "paraphrase_prompts": [f"It rained. {subject} is close to"],
                "neighborhood_prompts": [f"{CITIES[(number + 1) % 10]} lies near"],
            }
        )
    return made
