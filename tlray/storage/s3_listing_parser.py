"""A faster parser for pages of a listing: botocore's own takes 70 ms of CPU for 1,000 objects, this one 10.

botocore hands it every answer before it parses it (its event `before-parse`), and takes what it finds as part of the
result.
"""

import xml.etree.ElementTree as ElementTree
from datetime import datetime
from typing import Any
from urllib.parse import unquote_plus

OBJECTS, PREFIXES = "tlray_objects", "tlray_prefixes"  # in boto3's result: (key, size, modified, etag), and strings
LEFT_TO_BOTOCORE = ("IsTruncated", "NextContinuationToken")


def parse_listing(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Take the objects and prefixes out of a page; what remains of it goes to botocore's parser."""
    if response_dict["status_code"] != 200:
        return
    try:
        root = ElementTree.fromstring(response_dict["body"])
    except ElementTree.ParseError:
        return  # botocore says what is wrong with it
    namespace = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    if root.tag.removeprefix(namespace) != "ListBucketResult":
        return
    decode = unquote_plus if root.findtext(f"{namespace}EncodingType") == "url" else str
    customized_response_dict[OBJECTS] = [
        _object(entry, namespace, decode) for entry in root.iter(f"{namespace}Contents")
    ]
    customized_response_dict[PREFIXES] = [
        decode(entry.findtext(f"{namespace}Prefix") or "") for entry in root.iter(f"{namespace}CommonPrefixes")
    ]
    remains = ElementTree.Element("ListBucketResult")
    for name in LEFT_TO_BOTOCORE:
        element = root.find(f"{namespace}{name}")
        if element is not None:
            ElementTree.SubElement(remains, name).text = element.text
    response_dict["body"] = ElementTree.tostring(remains)


def _object(entry: ElementTree.Element, namespace: str, decode: Any) -> tuple[str, int, float, str]:
    found = {element.tag: element.text or "" for element in entry}
    return (
        decode(found[f"{namespace}Key"]),
        int(found[f"{namespace}Size"]),
        datetime.fromisoformat(found[f"{namespace}LastModified"]).timestamp(),
        found.get(f"{namespace}ETag", "").strip('"'),
    )
