"""Listings: looked up by all, changed by those who know the token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.catalogue.schema import COLUMNS, left_columns, to_listing
from afmrl_jax.errors import CatalogueError, InputError
from afmrl_jax.runtime.json_files import parse_json
from afmrl_jax.runtime.terminal import printable
from afmrl_jax.serving import schemas
from afmrl_jax.serving.engine import attributes_text
from afmrl_jax.serving.guard import Refused
from afmrl_jax.serving.routes.bodies import (
    body_docs,
    is_form,
    read_form,
    read_json_body,
    validated,
)
from afmrl_jax.serving.routes.models import require_few
from afmrl_jax.serving.schemas import pictures_of
from afmrl_jax.serving.service import Service

ListingId = Annotated[str, Query(min_length=1, max_length=512)]
LISTING_FORM = {
    "listing_id": {"type": "string"},
    "title": {"type": "string"},
    "image": {"type": "string", "format": "binary"},
    "product_id": {"type": "string"},
    "attributes": {"type": "string"},
    "extra": {"type": "string", "description": "a JSON object"},
}


def router(service: Service) -> APIRouter:
    """The routes."""
    found = APIRouter(tags=["listings"])
    _add_look_ups(found, service)
    _add_changes(found, service)
    return found


def _add_look_ups(found: APIRouter, service: Service) -> None:
    @found.get("/listings", summary="What the index knows of a listing")
    async def look_up(listing_id: ListingId) -> dict[str, Any]:
        engine = service.get()
        if listing_id not in engine.index:
            raise Refused(404, "there is no such listing")
        return engine.index.shown(listing_id)

    @found.get("/thumbnails", summary="A listing's small picture", response_class=Response)
    async def thumbnail(listing_id: ListingId) -> Response:
        engine = service.get()
        small = None
        if listing_id in engine.index:
            small = engine.index.entry(listing_id).thumbnail
        if small is None:
            raise Refused(404, "there is no such picture")
        return Response(small, media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})


def _add_changes(found: APIRouter, service: Service) -> None:
    def changed(count: int) -> dict[str, int]:
        service.count()
        return {"changed": count, "listings": len(service.engine.index)}

    @found.post(
        "/listings",
        response_model=schemas.ChangedResponse,
        openapi_extra=body_docs(schemas.ListingsRequest, LISTING_FORM),
        summary="Add listings, or replace those of the same ids",
    )
    async def put(request: Request) -> dict[str, int]:
        engine = service.get_to_write(request)
        rows = await _rows(request, service)
        listings = [_listing(x, pictures, n) for n, (x, pictures) in enumerate(rows)]
        repeated = {x.listing_id for x in listings}
        if len(repeated) < len(listings):
            raise InputError("an id is repeated; give each listing once")
        await engine.put(listings, [attributes_text(x.attributes) for x, _ in rows])
        return changed(len(listings))

    @found.patch(
        "/listings",
        response_model=schemas.ChangedResponse,
        openapi_extra=body_docs(schemas.UpdateRequest),
        summary="Change what a listing carries, such as its price; nothing is embedded",
    )
    async def update(request: Request) -> dict[str, int]:
        engine = service.get_to_write(request)
        asked = await read_json_body(request, schemas.UpdateRequest)
        _require_carried({k: x for k, x in asked.extra.items() if x is not None})
        await engine.update(asked.listing_id, asked.extra)
        return changed(1)

    @found.delete(
        "/listings",
        response_model=schemas.ChangedResponse,
        summary="Remove listings: all that are named, or none if one is unknown",
    )
    async def remove(
        request: Request, listing_id: Annotated[list[str], Query(min_length=1)]
    ) -> dict[str, int]:
        engine = service.get_to_write(request)
        require_few(len(listing_id), service)
        await engine.remove(listing_id)
        return changed(len(listing_id))


async def _rows(
    request: Request, service: Service
) -> list[tuple[schemas.NewListing, tuple[bytes, ...]]]:
    if not is_form(request):
        asked = await read_json_body(request, schemas.ListingsRequest)
        require_few(len(asked.listings), service)
        return [(x, pictures_of(x.image)) for x in asked.listings]
    fields = await read_form(request)
    picture = fields.pop("image", None)
    if not isinstance(picture, bytes) or not picture:
        raise InputError("image: send a file")
    if "extra" in fields:
        fields["extra"] = parse_json(fields["extra"], "extra", error=InputError)
    return [(validated(schemas.NewListing, {**fields, "image": "a file"}), (picture,))]


def _require_carried(extra: dict[str, Any]) -> None:
    taken = [x for x in extra if x in COLUMNS]
    if taken:
        raise InputError(f"extra: {taken[0]!r} is a name of a listing's own; choose another")
    for name, why in left_columns(extra).items():
        raise InputError(f"extra: {printable(name[:60])!r} cannot be carried: {why}")


def _listing(x: schemas.NewListing, pictures: tuple[bytes, ...], number: int) -> Listing:
    """A listing that is checked as those of catalogues are."""
    row: dict[str, object] = dict(x.extra)
    own = {"listing_id": x.listing_id, "product_id": x.product_id or x.listing_id}
    try:
        _require_carried(x.extra)
        # Pictures in bytes, so that no file is looked for.
        own_pictures = {"image": pictures[0], "images": list(pictures[1:])}
        return to_listing({**row, **own, "title": x.title, **own_pictures}, Path("/nonexistent"))
    except (CatalogueError, InputError) as error:
        raise InputError(f"listings[{number}]: {error}") from error
