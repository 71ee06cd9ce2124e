"""The page at ``/docs``: the OpenAPI document as one HTML page, without scripts and without other files."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

Schema = Mapping[str, Any]

_STYLE = resources.files(__package__).joinpath("docs.css").read_text()
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

# No script, no frame, nothing from anywhere; the one style is named by its hash.
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)

_MARKDOWN = MarkdownIt("commonmark", {"html": False})


def render(document: Mapping[str, Any]) -> str:
    """``document`` is an OpenAPI 3.1 document whose references lead into itself."""
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters.update(
        markdown=lambda text: Markup(_MARKDOWN.render(text or "")),
        inline=lambda text: Markup(_MARKDOWN.renderInline((text or "").strip())),
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    )
    template = environment.from_string(resources.files(__package__).joinpath("docs.html").read_text())
    page = _Page(document)
    return template.render(document=document, page=page, style=Markup(_STYLE))


class _Page:
    """What the template asks about the document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def resolve(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """The node that ``$ref`` leads to, with what stands beside the reference."""
        beside = dict(node)
        while "$ref" in beside:
            target: Any = self._document
            for part in beside.pop("$ref").removeprefix("#/").split("/"):
                target = target[part.replace("~1", "/").replace("~0", "~")]
            beside = {**target, **beside}
        return beside

    def operations(self, tag: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Method, path and operation, whose parameters include those of the path."""
        for path, item in self._document["paths"].items():
            for method in [name for name in item if name != "parameters"]:
                if tag in item[method]["tags"]:
                    parameters = [*item.get("parameters", ()), *item[method].get("parameters", ())]
                    yield method, path, {**item[method], "parameters": parameters}

    def webhooks(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, item in self._document.get("webhooks", {}).items():
            yield name, item["post"]

    def security(self, operation: Mapping[str, Any]) -> str:
        """The ways in, as words."""
        ways = operation.get("security", self._document.get("security", []))
        return " or ".join(" and ".join(way) for way in ways)

    def reply_schemas(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, schema in self._document["components"]["schemas"].items():
            if schema.get("type") == "object":
                yield name, schema

    def codes(self) -> Mapping[str, Any]:
        error = self._document["components"]["schemas"]["Error"]["properties"]["error"]
        codes: Mapping[str, Any] = error["properties"]["code"]["x-codes"]
        return codes

    def name(self, schema: Schema) -> str | None:
        """The name of the object that a schema refers to, if it has a section of its own."""
        name = str(schema.get("$ref", "")).rpartition("/")[2]
        return name if name and self.resolve(schema).get("type") == "object" else None

    def fields(self, schema: Schema, prefix: str = "") -> Iterator[tuple[str, dict[str, Any], bool]]:
        """Name, schema and whether it must be there, for each field and those of objects within."""
        resolved = self.resolve(schema)
        for name, field in resolved.get("properties", {}).items():
            if "x-refused" in field:
                continue
            yield f"{prefix}{name}", field, name in resolved.get("required", ())
            inner, mark = (field["items"], "[]") if "items" in field else (field, "")
            if self.name(inner) is None:
                yield from self.fields(inner, f"{prefix}{name}{mark}.")

    def refused(self, schema: Schema) -> Iterator[tuple[str, str]]:
        """Name and reason of each field that is known only to be refused."""
        for name, field in self.resolve(schema).get("properties", {}).items():
            if "x-refused" in field:
                yield name, field["x-refused"]

    def kind(self, schema: Schema) -> str:
        """Its type in words, such as ``integer or its text`` or ``array of Video``."""
        if (plain := self._plain(schema)) is not schema:
            return f"{self.kind(plain)} or null"
        if (name := self.name(schema)) is not None:
            return name
        resolved = self.resolve(schema)
        if "const" in resolved:
            return json.dumps(resolved["const"])
        if "items" in resolved:
            return f"array of {self.kind(resolved['items'])}"
        if resolved.get("format") == "binary":
            return "file"
        types = resolved.get("type", "string" if "enum" in resolved else "any")
        types = [types] if isinstance(types, str) else list(types)
        if "string" in types and set(types) & {"integer", "number", "boolean"}:
            types[types.index("string")] = "its text"
        return " or ".join(types)

    def limits(self, schema: Schema) -> list[str]:
        """The rest of what a value must be."""
        resolved = self.resolve(self._plain(schema))
        found = []
        if "enum" in resolved:
            found.append(" · ".join(str(value) for value in resolved["enum"] if value is not None))
        if "minimum" in resolved and "maximum" in resolved:
            found.append(f"{resolved['minimum']} to {resolved['maximum']}")
        elif "minimum" in resolved:
            found.append(f"at least {resolved['minimum']}")
        if "maxLength" in resolved:
            found.append(f"at most {resolved['maxLength']} characters")
        if "maxItems" in resolved:
            found.append(f"at most {resolved['maxItems']}")
        if "default" in resolved:
            found.append(f"default {resolved['default']}")
        return found

    def _plain(self, schema: Schema) -> Schema:
        """Without the ``null`` that a field may also be."""
        choices = [choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"]
        return choices[0] if len(choices) == 1 else schema

    def curl(self, method: str, path: str, operation: Mapping[str, Any]) -> str:
        """A command that makes such a request."""
        url = self._document["servers"][0]["url"].rstrip("/") or "http://127.0.0.1:30010"
        for parameter in map(self.resolve, operation["parameters"]):
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", str(parameter["example"]))
        lines = [f"curl {shlex.quote(url + path)}"]
        if method not in ("get", "post"):
            lines[0] = f"curl -X {method.upper()} {shlex.quote(url + path)}"
        if self.security(operation):
            lines.append('-H "Authorization: Bearer $KEY"')
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            if kind == "application/json":
                example = next(iter(content["examples"].values()))["value"]
                lines.append("-H 'Content-Type: application/json'")
                lines.append(f"-d {shlex.quote(json.dumps(example, ensure_ascii=False))}")
        if operation["operationId"] in ("createVideoSync", "videoContent"):
            lines.append("-o video.mp4")
        if operation["operationId"] == "editImage":
            lines += ["-F prompt='a red circle'", "-F 'image=@picture.png;type=image/png'"]
        return " \\\n  ".join(lines)
