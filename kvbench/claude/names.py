"""Model ids as people's files have them: Claude API, Bedrock, Google Cloud, Foundry, and what gateways put before them.

Sources: platform.claude.com, "Model IDs and versioning", "Claude in Amazon Bedrock" and "Claude on Google Cloud"
(2026-08); code.claude.com, "Model configuration" ([1m]); the provider prefixes and Bedrock's geographies are those of
litellm 1.109.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

API, BEDROCK, VERTEX, FOUNDRY = "", "bedrock", "vertex_ai", "azure_ai"

# prefix of a gateway or library -> platform that bills
_PREFIXES = {
    "anthropic": API,
    "bedrock": BEDROCK,
    "vertex_ai": VERTEX,
    "vertex_ai_beta": VERTEX,
    "azure_ai": FOUNDRY,
}
_ROUTES = (
    "converse",
    "invoke",
    "converse_like",
)  # litellm's ways to call Bedrock, which the price does not depend on
_MANTLE = (
    "bedrock_mantle"  # litellm's name of Bedrock's Messages endpoint of a region, which the id does not name
)
REGIONAL = "regional"
_CLAUDE_PLATFORM = "claude_platform"  # Claude Platform on AWS: Anthropic's own prices
_GEOGRAPHY = re.compile(r"(?:(?P<geography>[a-z]{2,4}(?:-gov)?|global)\.)?anthropic\.(?P<id>claude-.+)")
_AWS_REGION = re.compile(r"[a-z]{2}(?:-[a-z]+)+-\d")
_LOCATION = re.compile(r"(?:projects/[^/]+/)?locations/(?P<location>[^/]+)/publishers/anthropic/models/")


@dataclass(frozen=True, slots=True)
class Name:
    """A model id in its parts.

    Attributes:
        model: the id in Anthropic's present order of parts, with a snapshot's date, as claude-sonnet-4-5-20250929.
        platform: API, BEDROCK, VERTEX or FOUNDRY.
        region: geography or region of the endpoint, "" for the global one.
    """

    model: str
    platform: str = API
    region: str = ""

    def __str__(self) -> str:
        """A form that parses to the same name; equal for all forms of an id."""
        return "/".join(part for part in (self.platform, self.region, self.model) if part)


_UP_TO_4_6 = re.compile(r"claude-[a-z]+-(?:3(?:-\d)?|4(?:-[0-6])?)(?:-\d{8})?$")


def is_older(model: str) -> bool:
    """Whether a model is of the generations up to 4.6, which have another tokenizer and smaller images."""
    return _UP_TO_4_6.match(parse_name(model).model) is not None


def parse_name(text: str) -> Name:
    """The parts of a model id; what is no known form stays as it is.

    Args:
        text: an id, with or without the prefix of a gateway, an AWS ARN, or a Google Cloud resource.
    """
    rest, platform, region = re.sub(r"\s", "", text), API, ""
    if rest.startswith("arn:aws"):
        fields = rest.split(":", 5)
        platform, rest = BEDROCK, fields[-1].split("/", 1)[-1]
        region = fields[3] if len(fields) == 6 and fields[-1].startswith("foundation-model/") else ""
    if found := _LOCATION.match(rest):
        platform, region, rest = VERTEX, found["location"], rest[found.end() :]
    rest = rest.removeprefix("publishers/anthropic/models/")
    *parts, rest = rest.split("/")
    for part in parts:
        if part == _CLAUDE_PLATFORM:
            platform = API
        elif part == _MANTLE:
            platform, region = BEDROCK, REGIONAL
        elif part in _PREFIXES:
            platform = platform or _PREFIXES[part]
        elif platform in (BEDROCK, VERTEX) and _is_region(part, platform):
            region = part
        elif not (platform == BEDROCK and part in _ROUTES):
            return Name(text)
    if found := _GEOGRAPHY.fullmatch(rest):
        platform = platform or BEDROCK
        # an inference profile for a geography
        region, rest = found["geography"] or region, found["id"]
    return Name(_plain(rest), platform, "" if region == "global" else region)


def _is_region(part: str, platform: str) -> bool:
    if part == "global" or _AWS_REGION.fullmatch(part):
        return True
    geographies = rf"us-gov|[a-z]{{2,4}}|{REGIONAL}" if platform == BEDROCK else r"[a-z]{2,}(?:-[a-z]+)*\d*"
    return re.fullmatch(geographies, part) is not None


def _plain(text: str) -> str:
    """An id without what the price does not depend on: context window, version of Bedrock's id, alias."""
    text = re.sub(r"\[1m\]$", "", text, flags=re.IGNORECASE).strip()
    text = re.sub(r"-v\d+(?::\d+)?(?::\d+k)?$", "", text)
    text = re.sub(r"(?:@default|@latest|-latest)$", "", text)
    found = re.fullmatch(r"claude((?:-[a-z]+|-\d{1,2}(?:\.\d)?)+)(?:[-@](\d{8}))?", text)
    if found is None:
        return text
    # claude-3-5-haiku and claude-4.6-opus are claude-haiku-3-5 and claude-opus-4-6
    parts = re.findall(r"[a-z]+|\d+", found[1])
    numbers = [part for part in parts if part.isdigit()]
    if len(numbers) == 2 and numbers[1] == "0":
        del numbers[1]
    dated = [found[2]] if found[2] else []
    return "-".join(["claude", *(part for part in parts if not part.isdigit()), *numbers, *dated])
