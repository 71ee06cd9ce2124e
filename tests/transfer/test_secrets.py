"""Secret files: what is read, and what is refused by one line that names the file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import trustme

from tests.certificates import pem_files, private_file
from transfer.secrets import read_token, write_token
from transfer.tls import TlsFiles, load_tls

TOKEN = "s3cret-t0ken-of-a-cluster"


def test_a_token_is_the_word_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    assert read_token(private_file(path, f"{TOKEN}\n".encode(), 0o640)) == TOKEN
    assert read_token(private_file(path, b"x" * 1024)) == "x" * 1024


@pytest.mark.parametrize(
    "content",
    [b"", b" \n", b"two words, long", b"a\0b" * 9, "é".encode() * 20, b"x" * 15, b"x" * 1025, b"x" * 10**6],
)
def test_what_is_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match="token: expected one word of 16 to 1024") as raised:
        read_token(private_file(tmp_path / "token", content))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    for mode in (0o644, 0o604, 0o660, 0o602):
        with pytest.raises(PermissionError, match=f"token: mode {mode:04o} is open to others"):
            read_token(private_file(tmp_path / "token", TOKEN.encode(), mode))
    with pytest.raises(FileNotFoundError, match="none"):
        read_token(tmp_path / "none")


def test_a_new_token_is_random_and_its_file_private(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        for name in ("a", "b"):
            write_token(tmp_path / name)
    finally:
        os.umask(mask)
    tokens = {read_token(tmp_path / name) for name in ("a", "b")}
    assert len(tokens) == 2 and all(len(token) >= 43 for token in tokens)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_token(tmp_path / "a")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def test_three_files_or_none(tmp_path: Path, authority: trustme.CA) -> None:
    cert, key, ca = pem_files(tmp_path, authority)
    assert load_tls(None, None, None) is None
    loaded = load_tls(cert, key, ca)
    assert loaded is not None and loaded.key == key.read_bytes() and "key" not in repr(loaded)
    with pytest.raises(ValueError, match=r"--tls-key and --tls-ca: not given"):
        load_tls(cert, None, None)
    with pytest.raises(ValueError, match=r"--tls-ca: not given"):
        load_tls(cert, key, None)


def test_bad_files_are_named(tmp_path: Path, authority: trustme.CA) -> None:
    cert, key, ca = pem_files(tmp_path, authority)
    garbage = private_file(tmp_path / "garbage.pem", b"-----BEGIN CERTIFICATE-----\nnonsense\n")
    other = private_file(tmp_path / "other.pem", authority.issue_cert("b").private_key_pem.bytes())
    for files, named in (
        ((garbage, key, ca), "garbage.pem and"),
        ((cert, garbage, ca), "garbage.pem: expected a certificate"),
        ((cert, other, ca), "other.pem: expected a certificate and the unencrypted key that belongs"),
        ((cert, key, garbage), "garbage.pem: expected certificates"),
    ):
        with pytest.raises(ValueError, match=named) as raised:
            TlsFiles.load(*files)
        assert "\n" not in str(raised.value)
    with pytest.raises(FileNotFoundError, match="none"):
        TlsFiles.load(cert, tmp_path / "none", ca)
    key.chmod(0o644)
    with pytest.raises(PermissionError, match=r"key\.pem: mode 0644"):
        TlsFiles.load(cert, key, ca)


def test_a_key_that_needs_a_password_is_refused_and_nobody_is_asked(
    tmp_path: Path, authority: trustme.CA
) -> None:
    from cryptography.hazmat.primitives import serialization as forms

    cert, key, ca = pem_files(tmp_path, authority)
    plain = forms.load_pem_private_key(key.read_bytes(), None)
    encrypted = plain.private_bytes(
        forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.BestAvailableEncryption(b"word")
    )
    private_file(key, encrypted)
    with pytest.raises(ValueError, match=r"key\.pem: expected a certificate and the unencrypted key"):
        TlsFiles.load(cert, key, ca)
