"""Hooks of Schemathesis for .ci/checks/contract.

They add sessions and examples to requests, normalize integers, record the operations that succeed, and check rejections of valid
requests.

CONTRACT_ROLE is a role, or `none` for requests without a session, or `allowed` for the first role that the document allows to
call an operation. With `allowed`, a customer calls the operations that are open to every role, and operations that need no
session get none.
"""

import json
import os
import random
import urllib.request
import uuid

import schemathesis

API = os.environ["CONTRACT_API"]
ROLE = os.environ["CONTRACT_ROLE"]
TOKENS = json.loads(os.environ["CONTRACT_TOKENS"])
SUCCESSES = open(os.environ["CONTRACT_SUCCESSES"], "a", buffering=1)

# These operations end the session, so each call has the session of a new customer.
ENDS_SESSION = {"log_out", "change_password"}
# The current password in the OpenAPI document's example of a password change. New users get this password, so that the example
# succeeds.
PASSWORD = "correct horse battery staple"

choices = random.Random(1)


def post(path, body):
    request = urllib.request.Request(API + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def new_session():
    email = f"{uuid.uuid4().hex}@example.com"
    post("/v1/users", {"email": email, "password": PASSWORD, "name": "Ada"})
    return post("/v1/sessions", {"email": email, "password": PASSWORD})["token"]


@schemathesis.auth(refresh_interval=None)
class Session:
    def get(self, case, ctx):
        operation = ctx.operation.definition.raw
        security = operation.get("security")
        if ROLE == "none" or (ROLE == "allowed" and not security):
            return None
        if operation["operationId"] in ENDS_SESSION:
            return new_session()
        if ROLE != "allowed":
            return TOKENS[ROLE]
        return TOKENS[next(iter(security[0]["session"]), "customer")]

    def set(self, case, token, ctx):
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {token}"}


def is_valid(case):
    return case.meta is not None and case.meta.generation.mode.is_positive


def without_fractions(value):
    """Replaces numbers such as 1.0 with 1, because JSON Schema counts 1.0 as an integer, and the service does not."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [without_fractions(item) for item in value]
    if isinstance(value, dict):
        return {name: without_fractions(item) for name, item in value.items()}
    return value


@schemathesis.hook
def before_call(ctx, case, kwargs):
    """Changes the JSON object in a valid request: normalizes integers, and sets about half of the fields with an example to that example.

    Without the examples few requests would succeed, because a success rarely results from random values.
    """
    if not is_valid(case) or not isinstance(case.body, dict):
        return
    case.body = without_fractions(case.body)
    for body in case.operation.body:
        for name, field in body.definition.get("schema", {}).get("properties", {}).items():
            if name in case.body and "example" in field and choices.random() < 0.5:
                case.body[name] = field["example"]


@schemathesis.hook
def after_call(ctx, case, response):
    if 200 <= response.status_code < 300:
        SUCCESSES.write(case.operation.definition.raw["operationId"] + "\n")


@schemathesis.check
def valid_requests_are_understood(ctx, response, case):
    """Checks that the service rejects no valid request as malformed, and none for a missing idempotency key.

    A request is valid if it matches the schema. The service may reject it with `invalid-request` only if the operation declares a
    422 response of its own, in place of a `$ref` to the shared one.
    """
    if not is_valid(case) or response.status_code not in (400, 422):
        return
    problem = json.loads(response.content)["type"]
    described = "$ref" not in case.operation.definition.raw["responses"].get("422", {"$ref": ""})
    assert problem not in ("/problems/malformed-request", "/problems/missing-idempotency-key"), problem
    assert problem != "/problems/invalid-request" or described, "the document allows a request that the service rejects"
