"""Writes tests/data/crd_schemas.json.gz: the custom resources that deploy/kubernetes uses, as strict JSON schemas.

    git -C KUBERAY show v1.7.0:helm-chart/kuberay-operator/crds/ray.io_rayclusters.yaml > rayclusters.yaml
    git -C KUBERAY show v1.7.0:helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml > rayjobs.yaml
    git -C KARPENTER show v1.14.1:pkg/apis/crds/karpenter.sh_nodepools.yaml > nodepools.yaml
    python -m scripts.make_crd_schemas rayclusters.yaml rayjobs.yaml nodepools.yaml

The API server drops fields that a schema does not know; here they are errors. Descriptions are left out, and what
occurs more than once (every pod template) is kept once. Sources: KubeRay and Karpenter, both Apache-2.0.
"""

import gzip
import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

TARGET = Path(__file__).parent.parent / "tests" / "data" / "crd_schemas.json.gz"
KEPT = ("type", "enum", "required", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")
SHARED_FROM = 400  # characters of JSON from which a repeated subtree becomes a definition


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural schema of Kubernetes as JSON schema that refuses unknown fields."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result: dict[str, Any] = {key: schema[key] for key in KEPT if key in schema}
    if "properties" in schema:
        result["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = strict(schema["items"])
    return result


def share(schemas: dict[str, Any]) -> dict[str, Any]:
    """Replace what occurs more than once by a reference -> {"schemas": ..., "definitions": ...}."""
    texts: Counter[str] = Counter()

    def count(node: Any) -> None:
        if isinstance(node, dict):
            text = json.dumps(node, sort_keys=True)
            texts[text] += 1
            if texts[text] == 1:
                for value in node.values():
                    count(value)

    count(schemas)
    definitions: dict[str, Any] = {}

    def replaced(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        text = json.dumps(node, sort_keys=True)
        if texts[text] < 2 or len(text) < SHARED_FROM or "type" not in node:
            return {key: replaced(value) for key, value in node.items()}
        name = hashlib.sha256(text.encode()).hexdigest()[:8]
        if name not in definitions:
            definitions[name] = {key: replaced(value) for key, value in node.items()}
        return {"$ref": f"#/definitions/{name}"}

    return {"schemas": replaced(schemas), "definitions": definitions}


def schemas_of(paths: list[str]) -> dict[str, Any]:
    """{"ray.io/v1/RayJob": schema} of every served version in the files."""
    found = {}
    for path in paths:
        definition = yaml.safe_load(Path(path).read_text())["spec"]
        for version in definition["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            # the generator leaves these to Kubernetes itself; tests/unit/test_deploy_kubernetes.py looks at them
            schema["properties"]["metadata"] = {"type": "object"}
            schema["properties"].pop("status", None)
            found[f"{definition['group']}/{version['name']}/{definition['names']['kind']}"] = schema
    return found


if __name__ == "__main__":
    schemas = {name: schema for name, schema in schemas_of(sys.argv[1:]).items() if "alpha" not in name}
    text = json.dumps(share(schemas), sort_keys=True, separators=(",", ":"))
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{TARGET}: {', '.join(schemas)}; {len(text)} characters, {TARGET.stat().st_size} bytes")
