"""Reasons are stable: the contract, the server and the client know the same ones."""

import re
from pathlib import Path

from google.rpc import code_pb2

import mechanicd.access
import mechanicd.client._errors as client_errors
import mechanicd.service._errors as service_errors
import mechanicd.tuner
from mechanicd.v1 import errors_pb2, names

CONTRACT = Path(names.__file__).parent
REASONS = set(errors_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}
DOCUMENTED = {
    name: " ".join(re.findall(r"//\s*(.*)", comment))
    for comment, name in re.findall(r"((?:[ ]*//.*\n)+)[ ]*([A-Z_]+) = \d+;", (CONTRACT / "errors.proto").read_text())
}
NO_ERROR = {name for name in REASONS if DOCUMENTED[name].startswith("Not an error")}


def test_each_reason_that_the_server_gives_is_in_the_contract() -> None:
    assert set(service_errors._CODES) <= REASONS


def test_each_reason_in_the_contract_is_given_by_the_server_or_says_that_it_is_no_error() -> None:
    assert REASONS - set(service_errors._CODES) == NO_ERROR == {"NON_FINITE_REDUCTIONS", "NOT_IMPLEMENTED"}


def test_each_reason_is_given_under_the_code_that_the_contract_documents() -> None:
    for name, code in service_errors._CODES.items():
        assert DOCUMENTED[name].startswith(f"{code_pb2.Code.Name(code)}. "), name


def test_each_reason_is_given_somewhere() -> None:
    """A reason that no line of the server names but the table of codes is a dead one."""
    table = Path(service_errors.__file__)
    folders = [table.parent, Path(mechanicd.tuner.__file__).parent, Path(mechanicd.access.__file__).parent, CONTRACT]
    source = "".join(file.read_text() for folder in folders for file in folder.glob("[!e]*.py") if file != table)
    assert {name for name in service_errors._CODES if f'"{name}"' not in source} == set()


def test_each_reason_that_the_service_documents_is_in_the_contract() -> None:
    for file in CONTRACT.glob("*_service.proto"):
        comments = " ".join(re.findall(r"//(.*)", file.read_text()))
        lists = re.findall(r"Reasons: ([A-Z_,() a-z]*)\.", comments)
        assert lists, file.name
        named = {word for text in lists for word in re.findall(r"\b[A-Z]+_[A-Z_]+\b", text)}
        assert named <= REASONS, file.name


def test_the_client_has_a_class_for_each_reason() -> None:
    assert set(client_errors._BY_REASON) == set(service_errors._CODES) | {"NOT_IMPLEMENTED"}, "an older server gives it"


def test_the_client_keeps_a_reason_that_it_does_not_know() -> None:
    error = client_errors.from_reason("REASON_OF_TOMORROW", "something new", {"fact": "1"})
    assert type(error) is client_errors.MechanicdError
    assert (error.reason, error.message, error.metadata) == ("REASON_OF_TOMORROW", "something new", {"fact": "1"})
