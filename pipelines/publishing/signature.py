"""An OpenSSF signature over a published artifact, and whose is trusted.

It is model-signing's (https://github.com/sigstore/model-transparency): over every file, so over the statement, too.
"""

import os
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from pipelines.core.errors import Problem, QuantgateError, bad_input, refuse
from pipelines.core.secrets import redact
from pipelines.core.strict_yaml import Frozen

SIGNATURE = "model.sig"
PASSWORD_VARIABLE = "QUANTGATE_SIGNING_PASSWORD"
"""Name of the environment variable that holds the password of an encrypted key."""


class Signer(Frozen):
    """The one who signs: a private key, a key with its certificate, or an identity that sigstore vouches for."""

    key: Path | None = None
    """Private key of an elliptic curve, PEM."""
    certificate: Path | None = None
    """Certificate of `key`, PEM."""
    chain: tuple[Path, ...] = ()
    """Certificates between `certificate` and the root, PEM."""
    keyless: bool = False
    """Whether it signs with the identity of the CI job, through sigstore's public instance."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.keyless == (self.key is not None):
            raise ValueError("sign with a key, or keyless: exactly one")
        if self.key is None and (self.certificate or self.chain):
            raise ValueError("a certificate belongs to a key: give both")
        if self.chain and not self.certificate:
            raise ValueError("a chain belongs to a certificate: give both")
        return self


class Trust(Frozen):
    """The one whose signature is asked for: a key, any certificate below a root, or an identity."""

    key: Path | None = None
    """Public key, PEM."""
    roots: tuple[Path, ...] = ()
    """Certificates that are trusted, PEM."""
    identity: str | None = None
    """Identity (an address, a workflow) of who signs, where the signature is keyless."""
    issuer: str | None = None
    """Issuer that vouches for the identity."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.key is not None) + bool(self.roots) + (self.identity is not None) != 1:
            raise ValueError("trust a key, certificates or an identity: exactly one")
        if (self.identity is None) != (self.issuer is None):
            raise ValueError("an identity needs its issuer, and an issuer an identity")
        return self


def check_signer(signer: Signer) -> None:
    """Refuse a signer whose files cannot be read, or whose key cannot sign, before anything expensive.

    Raises:
        BadInput: with the reason, which repeats nothing of a file.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    for path in (signer.key, signer.certificate, *signer.chain):
        if path and not path.is_file():
            raise bad_input(path, "is not there, and was to sign with", "give the PEM file")
    if signer.key is None:
        return
    password = os.environ.get(PASSWORD_VARIABLE)
    try:
        key = load_pem_private_key(signer.key.read_bytes(), password.encode() if password else None)
    except (OSError, ValueError, TypeError):  # what it says may show part of the file
        raise bad_input(
            signer.key, "is no private key in PEM, or its password is wrong", f"set {PASSWORD_VARIABLE}"
        ) from None
    if not isinstance(key, EllipticCurvePrivateKey):
        remedy = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
        raise bad_input(signer.key, "is no key of an elliptic curve", remedy)


def check_trust(trust: Trust) -> None:
    """Refuse files to trust that are not there, which would make any signature look wrong.

    Raises:
        BadInput: with each of them.
    """
    remedy = "give the PEM file of a public key, or of a certificate"
    files = (trust.key, *trust.roots)
    refuse(Problem(str(path), "is no file", remedy) for path in files if path and not path.is_file())


def sign(folder: Path, signer: Signer) -> None:
    """Sign every file of `folder`, and write the signature beside them, as `SIGNATURE`.

    Raises:
        QuantgateError: with whatever sigstore, cryptography or the network says.
    """
    from model_signing import signing

    config = signing.Config().set_hashing_config(_hashing(folder))
    try:
        if signer.key is None:
            config.use_sigstore_signer(use_ambient_credentials=True)
        elif signer.certificate is None:
            config.use_elliptic_key_signer(private_key=signer.key, password=os.environ.get(PASSWORD_VARIABLE))
        else:
            config.use_certificate_signer(
                private_key=signer.key, signing_certificate=signer.certificate, certificate_chain=signer.chain
            )
        config.sign(folder, folder / SIGNATURE)
    except Exception as error:  # of sigstore, cryptography, the network: they share no class
        raise QuantgateError(redact(f"{folder}: could not be signed: {error}")) from None


def check_signature(folder: Path, trust: Trust) -> str | None:
    """Return why the signature of `folder` is not trusted, or not over exactly these files; None if it is."""
    from model_signing import verifying

    if not (folder / SIGNATURE).is_file():
        return f"it is not signed: there is no {SIGNATURE}"
    config = verifying.Config().set_hashing_config(_hashing(folder))
    try:
        if trust.key:
            config.use_elliptic_key_verifier(public_key=trust.key)
        elif trust.roots:
            config.use_certificate_verifier(certificate_chain=trust.roots)
        else:
            assert trust.identity and trust.issuer
            config.use_sigstore_verifier(identity=trust.identity, oidc_issuer=trust.issuer)
        config.verify(folder, folder / SIGNATURE)
    except Exception as error:  # a signature of somebody else, a changed file, and a broken one raise alike
        return f"its signature does not hold: {' '.join(str(error).split())[:300] or type(error).__name__}"
    return None


def _hashing(folder: Path) -> Any:
    """Return settings by which every file but the signature counts, `.gitattributes` (which hubs add), too."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)
