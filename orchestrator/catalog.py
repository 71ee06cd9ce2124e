"""The models that can be asked for, as the roles describe them."""

from __future__ import annotations

from transfer.urls import EndpointURL
from triptych_proto.control_pb2 import Model


class Catalog:
    """Models by name. All roles that serve one name must have equal fingerprints.

    What a role said of its model is kept after it left: requests are still accepted, and wait for it.
    """

    def __init__(self) -> None:
        self._descriptions: dict[str, dict[EndpointURL, Model]] = {}

    def introduce(self, url: EndpointURL, model: Model, live: set[EndpointURL]) -> str:
        """Notes what the role at ``url`` serves; returns why it does not fit ``live`` ones, or nothing."""
        known = self._descriptions.setdefault(model.name, {})
        for other, description in known.items():
            if other != url and other in live and description.fingerprint != model.fingerprint:
                return (
                    f"its {model.name} (fingerprint {model.fingerprint}) is not the one that "
                    f"{other} serves (fingerprint {description.fingerprint})"
                )
        for other in [o for o, d in known.items() if d.fingerprint != model.fingerprint]:
            del known[other]
        for descriptions in self._descriptions.values():
            descriptions.pop(url, None)
        known[url] = model
        for name in [name for name, descriptions in self._descriptions.items() if not descriptions]:
            del self._descriptions[name]
        return ""

    def models(self) -> list[Model]:
        """One description for each name; its limits hold for every role."""
        return [_narrowest(list(known.values())) for known in self._descriptions.values() if known]


def _narrowest(descriptions: list[Model]) -> Model:
    model = Model()
    model.CopyFrom(descriptions[0])
    model.max_pixels = min(d.max_pixels for d in descriptions)
    model.max_frames = min(d.max_frames for d in descriptions)
    model.max_steps = min(d.max_steps for d in descriptions)
    return model
