"""No message holds a password: one function hides those of all URLs."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import NightjarError, describe_failure, hide_password

LOGINS = (
    "postgresql+psycopg://me:{}@host:5432/db", "postgres://me:{}@host/db?sslmode=require", "http://me:{}@host:5000/api",
    "ftp://me:{}@host/f.csv", "s3://key:{}@bucket/lake", "mysql://me:{}@[::1]/db",
    "snowflake://me:{}@account/db/schema", "//me:{}@host/share",
)  # fmt: skip
PARAMETERS = (
    "postgresql://host/db?password={}", "postgresql://host/db?sslpassword={}&x=1", "https://host/f.csv?token={}",
    "https://host/f.csv?a=1&api_key={}", "https://host/f?X-Amz-Signature={}", "https://host/f?sig={}&se=1",
    "abfs://host/f?account_key={}", "mssql://?odbc_connect=DRIVER%3DX%3BPWD%3D{}", "host=h password={} dbname=d",
    "s3://bucket/f?AWS_SECRET_ACCESS_KEY={}", "DRIVER=X;Pwd={};", "https://host/f?auth={}", "https://{}@host/f.csv", "http://{}:x@host",
)  # fmt: skip
AROUND = ("{}", "cannot reach {}: refused", "got {{'url': '{}'}}", '"{}", and more', "({})\nnext line", "x={}")


@given(
    secret=st.text(st.sampled_from("abz019@/#?:;,%&+= '\"()[]{}\\ü"), min_size=4).map(lambda text: f"Q{text}Z"),
    url=st.sampled_from(LOGINS),
    around=st.sampled_from(AROUND),
)
def test_a_login_is_hidden_whatever_its_characters(secret: str, url: str, around: str) -> None:
    assert secret not in hide_password(around.format(url.format(secret)))
    assert quote(secret) not in hide_password(around.format(url.format(quote(secret, safe=""))))


@given(
    secret=st.text(st.sampled_from("abz019@/#?:%+=-"), min_size=4).map(lambda text: f"Q{text}Z"),
    url=st.sampled_from(PARAMETERS),
    around=st.sampled_from(AROUND),
)
def test_a_parameter_is_hidden(secret: str, url: str, around: str) -> None:
    assert secret not in hide_password(around.format(url.format(secret)))


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:4200/api refuses", "sqlite:////srv/x/y.db", "duckdb:///PATH", "a@b.example", "s3://bucket/lake",
        "postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE", "tcp://HOST:PORT", "http://[::1]:5000: gone",
        "correct the user, password and database in NIGHTJAR_WAREHOUSE", "127.0.0.1:*", "spend: 3 // 4",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert hide_password(text) == text


def test_what_stays_of_a_url_says_where_it_leads() -> None:
    hidden = hide_password("postgresql+psycopg://me:secret@host:1/db?sslpassword=x&application_name=y failed")
    assert hidden == "postgresql+psycopg://host:1/db?sslpassword=***&application_name=y failed"


def test_a_password_that_a_library_has_cut_off_is_hidden() -> None:
    assert hide_password("Failed to parse: http://me:sec") == "Failed to parse: http://me:***"


def test_every_part_of_an_error_and_the_stored_form_of_any_other_are_without_passwords() -> None:
    url = "ftp://me:s3cret@host/x"
    error = NightjarError(f"No {url}.", where=url, got=url, expected=url, todo=url)
    stored = describe_failure(ValueError(f"no {url}"))
    assert "s3cret" not in f"{error} {error.args} {error.parts} {error.line} {stored}"
