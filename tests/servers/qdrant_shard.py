"""One collection of the test server: a shard of Qdrant Edge that takes the bodies of REST calls.

What it does not know it refuses with 501.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import qdrant_edge as edge

Json = dict[str, Any]


class Refusal(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def unknown(what: object) -> Refusal:
    return Refusal(501, f"the test server does not know {what}")


def only(body: Json, *names: str) -> None:
    if strange := {name for name, value in body.items() if value is not None} - set(names):
        raise unknown(f"the fields {sorted(strange)}")


class Collection:
    """A shard and what the server remembers of it beside: the collection's configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: Json = json.loads((folder / "collection.json").read_text())
        self.shard = edge.EdgeShard.load(str(folder / "shard"))

    @classmethod
    def create(cls, folder: Path, body: Json) -> Collection:
        only(body, "vectors", "sparse_vectors", "hnsw_config", "metadata")
        if body.get("vectors"):
            raise unknown("dense vectors at creation")
        sparse = {}
        for name, params in body.get("sparse_vectors", {}).items():
            only(params, "modifier")
            idf = edge.Modifier.Idf if params.get("modifier") == "idf" else None
            sparse[name] = edge.EdgeSparseVectorParams(modifier=idf)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "shard").mkdir(parents=True)
        hnsw = edge.HnswIndexConfig(m=0, ef_construct=16, full_scan_threshold=10_000, payload_m=0)
        edge.EdgeShard.create(
            str(folder / "shard"), edge.EdgeConfig(sparse_vectors=sparse, hnsw_config=hnsw)
        ).close()
        kept = {"vectors": {}, "metadata": {}, "hnsw_config": {}, **body, "payload_schema": {}}
        (folder / "collection.json").write_text(json.dumps(kept))
        return cls(folder)

    def remove(self) -> None:
        self.shard.close()
        shutil.rmtree(self.folder)

    def save(self) -> None:
        part = self.folder / "collection.part"
        part.write_text(json.dumps(self.config))
        part.replace(self.folder / "collection.json")

    def info(self) -> Json:
        hnsw = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
        optimizers = {
            "deleted_threshold": 0.2, "vacuum_min_vector_number": 1000,
            "default_segment_number": 0, "flush_interval_sec": 5,
        }  # fmt: skip
        params = {name: self.config.get(name) for name in ("vectors", "sparse_vectors")}
        return {
            "status": "green",
            "optimizer_status": "ok",
            "points_count": self.count({"exact": True})["count"],
            "segments_count": 1,
            "config": {
                "params": params,
                "hnsw_config": hnsw | self.config["hnsw_config"],
                "optimizer_config": optimizers,
                "metadata": self.config["metadata"],
            },
            "payload_schema": self.config["payload_schema"],
        }

    def update(self, body: Json) -> bool:
        only(body, "metadata")
        self.config["metadata"] |= body.get("metadata", {})
        self.save()
        return True

    def create_index(self, body: Json) -> Json:
        only(body, "field_name", "field_schema")
        field, schema = body["field_name"], body["field_schema"]
        schema = {"type": schema} if isinstance(schema, str) else schema
        only(schema, "type", "is_tenant", "enable_hnsw")
        if schema["type"] == "keyword":
            params = edge.KeywordIndexParams(is_tenant=schema.get("is_tenant"))
        elif schema["type"] == "integer":
            params = edge.IntegerIndexParams(lookup=True, range=True)
        else:
            raise unknown(schema)
        self.shard.update(edge.UpdateOperation.create_field_index(field, params))
        shown = {"data_type": schema["type"], "params": schema, "points": 0}
        self.config["payload_schema"][field] = shown
        self.save()
        return DONE

    def create_vector(self, name: str, body: Json) -> Json:
        only(body, "dense")
        only(body["dense"], "size", "distance")
        known = self.config["vectors"].get(name)
        if known and known != body["dense"]:
            raise Refusal(400, f"Vector `{name}` already exists with a different configuration")
        distance = getattr(edge.Distance, body["dense"]["distance"])
        size = body["dense"]["size"]
        self.shard.update(edge.UpdateOperation.create_dense_vector(name, size, distance))
        self.config["vectors"][name] = body["dense"]
        self.save()
        return DONE

    def upsert(self, body: Json) -> Json:
        only(body, "points")
        for point in body["points"]:
            only(point, "id", "vector", "payload")
        self.shard.update(
            edge.UpdateOperation.upsert_points(
                [edge.Point(p["id"], vectors(p["vector"]), p["payload"]) for p in body["points"]]
            )
        )
        return DONE

    def update_vectors(self, body: Json) -> Json:
        only(body, "points")
        for point in body["points"]:
            only(point, "id", "vector")
        self.shard.update(
            edge.UpdateOperation.update_vectors(
                [edge.PointVectors(p["id"], vectors(p["vector"])) for p in body["points"]]
            )
        )
        return DONE

    def delete(self, body: Json) -> Json:
        only(body, "filter")
        chosen = wanted(body["filter"])
        self.shard.update(edge.UpdateOperation.delete_points_by_filter(chosen))
        return DONE

    def delete_vectors(self, body: Json) -> Json:
        only(body, "filter", "vector")
        chosen = wanted(body["filter"])
        self.shard.update(edge.UpdateOperation.delete_vectors_by_filter(chosen, body["vector"]))
        return DONE

    def delete_payload(self, body: Json) -> Json:
        only(body, "filter", "keys")
        chosen = wanted(body["filter"])
        self.shard.update(edge.UpdateOperation.delete_payload_by_filter(chosen, body["keys"]))
        return DONE

    def retrieve(self, body: Json) -> list[Json]:
        only(body, "ids", "with_payload", "with_vector")
        found = self.shard.retrieve(body["ids"], selected(body), False)
        return [shown(record) for record in found]

    def scroll(self, body: Json) -> Json:
        only(body, "filter", "limit", "with_payload", "with_vector")
        request = edge.ScrollRequest(
            limit=body.get("limit", 10),
            filter=wanted(body.get("filter")),
            with_payload=selected(body),
        )
        records, following = self.shard.scroll(request)
        return {
            "points": [shown(record) for record in records],
            "next_page_offset": following and str(following),
        }

    def count(self, body: Json) -> Json:
        only(body, "filter", "exact")
        exact = body.get("exact", True)
        request = edge.CountRequest(filter=wanted(body.get("filter")), exact=exact)
        return {"count": int(self.shard.count(request))}

    def facet(self, body: Json) -> Json:
        only(body, "key", "limit", "filter", "exact")
        if body["key"] not in self.config["payload_schema"]:
            raise Refusal(400, f"No appropriate index for faceting: `{body['key']}`")
        request = edge.FacetRequest(
            body["key"],
            limit=body.get("limit", 10),
            exact=body.get("exact", False),
            filter=wanted(body.get("filter")),
        )
        hits = self.shard.facet(request).hits
        return {"hits": [{"value": hit.value, "count": hit.count} for hit in hits]}

    def query(self, body: Json) -> Json:
        return self.query_batch({"searches": [body]})[0]

    def query_batch(self, body: Json) -> list[Json]:
        only(body, "searches")
        batch = edge.QueryBatchRequest([self._query(search) for search in body["searches"]])
        answers = self.shard.query_batch(batch)
        return [{"points": [scored(point) for point in points]} for points in answers]

    def _query(self, body: Json) -> Any:
        names = ("query", "using", "filter", "limit", "offset", "with_payload", "with_vector")
        only(body, *names)
        query = body["query"]
        if isinstance(query, dict) and "nearest" in query:
            only(query, "nearest")
            query = query["nearest"]
        if body["using"] not in {**self.config["vectors"], **self.config["sparse_vectors"]}:
            raise Refusal(400, f"Wrong input: Not existing vector name error: {body['using']}")
        return edge.QueryRequest(
            query=edge.Query.Nearest(vector(query), using=body["using"]),
            filter=wanted(body.get("filter")),
            limit=body.get("limit", 10),
            offset=body.get("offset") or 0,
            with_payload=selected(body),
        )


DONE: Json = {"operation_id": 0, "status": "completed"}


def vector(value: Any) -> Any:
    if isinstance(value, dict):
        only(value, "indices", "values")
        return edge.SparseVector(value["indices"], value["values"])
    if isinstance(value, list) and all(isinstance(number, int | float) for number in value):
        return value
    raise unknown("such a vector")


def vectors(named: Json) -> Json:
    return {name: vector(value) for name, value in named.items()}


def selected(body: Json) -> Any:
    if body.get("with_vector"):
        raise unknown("with_vector")
    chosen = body.get("with_payload", False)
    return edge.PayloadSelector.Include(chosen) if isinstance(chosen, list) else bool(chosen)


def shown(record: Any) -> Json:
    return {"id": str(record.id), "payload": record.payload}


def scored(point: Any) -> Json:
    return shown(point) | {"score": point.score, "version": point.version}


def wanted(body: Json | None) -> Any:
    if body is None:
        return None
    only(body, "must")
    return edge.Filter(must=[condition(one) for one in body.get("must") or []])


def condition(body: Json) -> Any:
    if "has_vector" in body:
        only(body, "has_vector")
        return edge.HasVectorCondition(body["has_vector"])
    only(body, "key", "match", "range")
    match: Any = None
    if given := body.get("match"):
        only(given, "value", "any")
        match = edge.MatchAny(given["any"]) if "any" in given else edge.MatchValue(given["value"])
    if span := body.get("range"):
        only(span, "gt", "gte", "lt", "lte")
        return edge.FieldCondition(key=body["key"], range=edge.RangeFloat(**span))
    return edge.FieldCondition(key=body["key"], match=match)
