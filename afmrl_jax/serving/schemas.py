"""What requests may say and answers hold; the OpenAPI document is made of these."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from afmrl_jax.errors import InputError
from afmrl_jax.inference.inputs import Input

MAX_TEXT = 10_000
"""Letters of a text."""
DATA_URI = "data:image/"
MAX_PICTURES = 32
"""Pictures of a listing, as in catalogues."""

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Picture = Annotated[str, Field(description="an encoded picture in base64, or a data: address")]
Pictures = Annotated[
    Picture | Annotated[list[Picture], Field(min_length=1, max_length=MAX_PICTURES)],
    Field(description="one, or several of the same offer; models read the first ones"),
]
Id = Annotated[str, Field(min_length=1, max_length=512)]
Cell = str | int | float | bool


class Strict(BaseModel):
    """Names that are not known are refused, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Item(Strict):
    """A text, a picture, or both."""

    text: Text | None = None
    image: Pictures | None = None
    attributes: Text | dict[str, Text] | None = None


class SearchRequest(Strict):
    """A query, and which listings it may find."""

    text: Text | None = None
    image: Picture | None = None
    k: int = Field(default=10, ge=1)
    where: list[Annotated[str, Field(max_length=512)]] = Field(
        default=[], max_length=16, examples=[["price<50", "brand=Acme"]]
    )
    attributes: Literal["auto", "off", "on"] = Field(
        default="auto",
        description="whether the generator writes attributes for the query, which sharpens it and "
        "takes time; auto: if it is fast enough here",
    )


class Written(BaseModel):
    """An attribute list."""

    text: str
    pairs: dict[str, str]


class Hit(BaseModel):
    """A listing that was found."""

    score: float = Field(description="cosine")
    listing_id: str
    product_id: str
    title: str
    attributes: str | None = None
    extra: dict[str, Cell] | None = Field(default=None, description="what else its shop said")
    thumbnail: str | None = Field(default=None, description="address of a small picture")


class SearchResponse(BaseModel):
    """The nearest listings, best first."""

    results: list[Hit]
    attributes: Written | None = Field(default=None, description="what was written for the query")
    seconds: float


class ItemsRequest(Strict):
    """Some items."""

    items: list[Item] = Field(min_length=1)


class EmbedResponse(BaseModel):
    """Unit vectors in the order of the items."""

    vectors: list[list[float]]
    dim: int
    embedder: str = Field(description="vectors of different embedders are not comparable")


class AttributesResponse(BaseModel):
    """Lists in the order of the items."""

    attributes: list[Written]


class NewListing(Strict):
    """A listing to add, or to replace."""

    listing_id: Id
    title: Text
    image: Pictures
    product_id: Id | None = Field(default=None, description="by default the listing's id")
    attributes: Text | dict[str, Text] | None = Field(
        default=None, description="only for an index that was embedded with given ones"
    )
    extra: dict[str, Cell] = Field(default={}, description="price, address, brand, stock ...")


class ListingsRequest(Strict):
    """Listings to add or replace: all of them, or none if one cannot be used."""

    listings: list[NewListing] = Field(min_length=1)


class UpdateRequest(Strict):
    """Carried columns to change; null drops one."""

    listing_id: Id
    extra: dict[str, Cell | None] = Field(min_length=1)


class ChangedResponse(BaseModel):
    """What is on disk now."""

    changed: int
    listings: int = Field(description="in the index")


class OpenAIRequest(BaseModel):
    """The request of OpenAI's embeddings, or chat messages with pictures as vLLM takes them."""

    model_config = ConfigDict(extra="ignore")

    input: str | list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class OpenAIVector(BaseModel):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIUsage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int


class OpenAIResponse(BaseModel):
    """The answer of OpenAI's embeddings."""

    object: Literal["list"] = "list"
    data: list[OpenAIVector]
    model: str
    usage: OpenAIUsage


class ChatRequest(BaseModel):
    """The request of OpenAI's chat completions; lists are always written greedily and whole."""

    model_config = ConfigDict(extra="ignore")

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=64)
    model: str = ""
    stream: Literal[False] = False
    n: Literal[1] = 1


class ChatMessage(BaseModel):
    """What was written."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """The only one."""

    index: Literal[0] = 0
    message: ChatMessage
    finish_reason: Literal["stop"] = "stop"


class ChatUsage(OpenAIUsage):
    """Tokens of a request and its answer."""

    completion_tokens: int


class ChatResponse(BaseModel):
    """The answer of OpenAI's chat completions."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    model: str
    usage: ChatUsage


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str


def picture_of(text: str) -> bytes:
    """The encoded picture of a request.

    Raises:
        InputError: it is no base64. Addresses are not fetched.
    """
    if text.startswith(DATA_URI):
        kind, comma, text = text.partition(",")
        if not comma or not kind.endswith(";base64"):
            raise InputError("a data: address of a picture must be in base64")
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            "an image must be an encoded picture in base64; addresses are not fetched"
        ) from error
    if not found:
        raise InputError("the image is empty")
    return found


def pictures_of(given: str | list[str]) -> tuple[bytes, ...]:
    """The encoded pictures of a request.

    Raises:
        InputError: one is no base64.
    """
    return tuple(map(picture_of, [given] if isinstance(given, str) else given))


def input_of(
    text: str | None, pictures: Sequence[bytes] = (), attributes: str | None = None
) -> Input:
    """A query or item.

    Raises:
        InputError: it is empty.
    """
    first, more = pictures[0] if pictures else None, tuple(pictures[1:])
    found = Input(text if text and text.strip() else None, first, attributes, more)
    if found.text is None and not pictures:
        raise InputError("give a text, an image, or both")
    return found


def input_of_messages(messages: list[dict[str, Any]]) -> Input:
    """The title, pictures and attributes of chat messages.

    Attributes are what an assistant says; system turns are left out, for the models have their own.

    Raises:
        InputError: they are not made of texts and pictures.
    """
    texts, pictures, attributes = list[str](), list[bytes](), list[str]()
    for message in messages:
        role = message.get("role")
        if role == "system":
            continue
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise InputError("a message needs a content: a text, or a list of parts")
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str):
                (attributes if role == "assistant" else texts).append(part["text"])
            elif kind == "image_url":
                address = part.get("image_url")
                address = address.get("url") if isinstance(address, dict) else address
                if not isinstance(address, str) or not address.startswith(DATA_URI):
                    raise InputError("an image_url must be a data: address; none is fetched")
                pictures.append(picture_of(address))
            else:
                raise InputError("parts of a message are texts and image_urls")
    told = " ".join(attributes).strip() or None
    return input_of(" ".join(texts), pictures, told)
