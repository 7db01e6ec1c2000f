"""`Security`: certificates, keys and TLS settings of all roles of a cluster, with the arguments of distributed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

from trio_dask.config_files import canonical
from trio_dask.configuration import Configuration, load
from trio_dask.errors import UsageError
from trio_dask.parsing import parse_boolean, parse_server_name
from trio_dask.security import certificates
from trio_dask.security.tls_contexts import Tls, TlsConfig, Verify

if TYPE_CHECKING:
    import ssl

TlsRole = Literal["client", "scheduler", "worker"]
"""The roles that have a certificate of their own; a nanny uses its worker's."""

_VERSIONS = (1.2, 1.3)
_EXTRA = {"headers", "server_hostname"}


class Security:
    """Certificates, keys and TLS settings of all roles of a cluster.

    Certificates and keys are paths of PEM files, or PEM texts; a key may stand in the file of its certificate. What is
    not given comes from the configuration (`distributed.comm.tls.*`, `distributed.comm.require-encryption`).

    Args:
      require_encryption: refuse connections without TLS. Default: whether anything else is given.
      tls_ca_file: the authority of all certificates.
      tls_ciphers: the ciphers allowed for TLS 1.2, as OpenSSL writes them.
      tls_min_version: 1.2 (the default) or 1.3.
      tls_max_version: 1.2 or 1.3.
      tls_verify: what the certificate of a peer must say besides: its host ("hostname"), its role ("role": the
        subject's organizational unit is `scheduler`, `worker` or `client`), or nothing ("ca", the default).
      tls_client_cert, tls_client_key, tls_scheduler_cert, tls_scheduler_key, tls_worker_cert, tls_worker_key: what
        each role shows.
      extra_conn_args: `headers`, a mapping, for websockets; `server_hostname`, what a caller asks a listener for.

    Raises:
      TypeError: there is no such argument.
      UsageError: a value is not one of those above.
    """

    __slots__ = (
        "extra_conn_args",
        "require_encryption",
        "tls_ca_file",
        "tls_ciphers",
        "tls_client_cert",
        "tls_client_key",
        "tls_max_version",
        "tls_min_version",
        "tls_scheduler_cert",
        "tls_scheduler_key",
        "tls_verify",
        "tls_worker_cert",
        "tls_worker_key",
    )

    require_encryption: bool
    tls_ca_file: str | None
    tls_client_cert: str | None
    tls_client_key: str | None
    tls_scheduler_cert: str | None
    tls_scheduler_key: str | None
    tls_worker_cert: str | None
    tls_worker_key: str | None
    tls_ciphers: str | None
    tls_min_version: ssl.TLSVersion
    tls_max_version: ssl.TLSVersion | None
    tls_verify: Verify
    extra_conn_args: Mapping[str, Any]

    _KEYS: ClassVar[Mapping[str, str]] = {
        name: "distributed.comm.tls." + name.removeprefix("tls_").replace("_", ".")
        for name in __slots__
        if name.endswith(("_cert", "_key"))
    } | {
        "tls_ca_file": "distributed.comm.tls.ca-file",
        "tls_ciphers": "distributed.comm.tls.ciphers",
        "tls_max_version": "distributed.comm.tls.max-version",
        "tls_min_version": "distributed.comm.tls.min-version",
        "tls_verify": "trio_dask.tls-verify",
    }

    def __init__(self, require_encryption: bool | None = None, **kwargs: Any) -> None:
        unknown = sorted(kwargs.keys() - {*self.__slots__})
        if unknown:
            raise TypeError(f"Unknown parameters: {unknown!r}")
        self.extra_conn_args = dict(kwargs.pop("extra_conn_args", None) or {})
        if strange := sorted(self.extra_conn_args.keys() - _EXTRA):
            raise UsageError(f"extra_conn_args may have {' and '.join(sorted(_EXTRA))}, not {', '.join(strange)}")
        server_name = self.extra_conn_args.get("server_hostname")
        if server_name is not None:
            try:
                parse_server_name(server_name)
            except (UsageError, AttributeError) as error:
                raise UsageError(
                    f"extra_conn_args: server_hostname={server_name!r:.60} is not the name of a host"
                ) from error
        configuration = load()
        if require_encryption is None:
            text = _configured(configuration, "distributed.comm.require-encryption")
            require_encryption = bool(kwargs) if text is None else parse_boolean(text)
        self.require_encryption = bool(require_encryption)
        given = {
            name: kwargs[name] if name in kwargs else _configured(configuration, key)
            for name, key in self._KEYS.items()
        }
        smallest, largest = given.pop("tls_min_version"), given.pop("tls_max_version")
        self.tls_min_version = _version("tls_min_version", _VERSIONS[0] if smallest is None else smallest)
        self.tls_max_version = None if largest is None else _version("tls_max_version", largest)
        self.tls_verify = given.pop("tls_verify") or "ca"
        if self.tls_verify not in get_args(Verify):
            raise UsageError(f"tls_verify={self.tls_verify!r} is none of {', '.join(get_args(Verify))}")
        for name, value in given.items():
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} is a path or a text, not {type(value).__name__}")
            setattr(self, name, value)

    @classmethod
    def temporary(cls, **kwargs: Any) -> Security:
        """Certificates made for this object, which exist in memory only: a certificate and a key for each role.

        Other arguments are those of `Security`.
        """
        authority, made = certificates.make_set(get_args(TlsRole))
        fields: dict[str, Any] = {"tls_ca_file": authority}
        for role, pair in made.items():
            fields |= {f"tls_{role}_cert": pair.certificate, f"tls_{role}_key": pair.key}
        return cls(**{"require_encryption": True, **fields, **kwargs})

    def __repr__(self) -> str:
        default: dict[str, object] = {
            "tls_min_version": _version("", _VERSIONS[0]),
            "tls_verify": "ca",
            "extra_conn_args": {},
        }
        shown: list[str] = []
        for name in self.__slots__:
            value = getattr(self, name)
            if value is None or (name in default and value == default[name]):
                continue
            is_secret = name == "extra_conn_args" or (isinstance(value, str) and certificates.is_text(value))
            shown.append(f"{name}={'...' if is_secret else repr(value)}")
        return f"Security({', '.join(shown)})"

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """A pickle may be stored or go to other machines, so no secret ever stands in one."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        if any(isinstance(value, str) and "PRIVATE KEY-----" in value for value in fields.values()):
            raise TypeError("a Security that holds a private key cannot be pickled; give it the path of the key's file")
        if fields["extra_conn_args"].get("headers"):
            raise TypeError("a Security with headers cannot be pickled: they may hold a password")
        return None, fields

    def get_tls_config_for_role(self, role: str) -> dict[str, str | None]:
        """Certificate, key, authority and ciphers of a role. Raises `ValueError` if there is no such role."""
        if role not in get_args(TlsRole):
            raise ValueError(f"unknown role {role!r}")
        return {
            "ca_file": self.tls_ca_file,
            "ciphers": self.tls_ciphers,
            "cert": getattr(self, f"tls_{role}_cert"),
            "key": getattr(self, f"tls_{role}_key"),
        }

    def get_connection_args(self, role: str) -> dict[str, Any]:
        """The context with which a role connects, None without certificates, and the other settings."""
        return {**self._args(role, listening=False), "extra_conn_args": self.extra_conn_args}

    def get_listen_args(self, role: str) -> dict[str, Any]:
        """The context with which a role listens, None without certificates, and whether encryption is required."""
        return self._args(role, listening=True)

    def _args(self, role: str, *, listening: bool) -> dict[str, Any]:
        config = self.get_tls_config_for_role(role)
        has_both = config["ca_file"] and config["cert"]
        context = self.for_role(cast("TlsRole", role)).context(listening=listening).ssl if has_both else None
        return {"ssl_context": context, "require_encryption": self.require_encryption}

    def for_role(self, role: TlsRole) -> Tls:
        """TLS as this role speaks it. Raises `UsageError` if only one of its certificate and the authority is given."""
        fields = self.get_tls_config_for_role(role)
        authority, certificate, key = fields["ca_file"], fields["cert"], fields["key"]
        headers = cast("Mapping[str, str]", self.extra_conn_args.get("headers") or {})
        server_name = cast("str", self.extra_conn_args.get("server_hostname") or "")
        config = None
        if authority and certificate:
            versions = self.tls_min_version, self.tls_max_version
            config = TlsConfig(authority, certificate, key, self.tls_ciphers, *versions, self.tls_verify)
        elif authority or certificate or key:
            lacks = f"tls_{role}_cert" if authority else "tls_ca_file"
            raise UsageError(f"TLS with certificates needs {lacks} for a {role}, besides what is given")
        return Tls(config, is_required=self.require_encryption, server_name=server_name, headers=headers)


def as_security(value: object) -> Security | None:
    """What an argument `security=` means: none, given ones (also as a dict), or, for True, temporary ones.

    Raises:
      UsageError: it is none of these.
    """
    if value is None or value is False:
        return None
    if value is True:
        return Security.temporary()
    if isinstance(value, Mapping):
        return Security(**cast("Mapping[str, Any]", value))
    if isinstance(value, Security):
        return value
    raise UsageError(f"security is {type(value).__name__}; give a Security, or True for temporary certificates")


def configured_security() -> Security | None:
    """What the configuration demands of a whole cluster: encryption, or at least that the roles have certificates.

    Where it names certificates for some roles only, as on a machine for clients, that is no demand.
    """
    found = Security()
    configs = [found.get_tls_config_for_role(role) for role in get_args(TlsRole)]
    has_all = all(config["ca_file"] and config["cert"] for config in configs)
    return found if has_all or found.require_encryption else None


def _configured(configuration: Configuration, key: str) -> Any:
    """What the configuration says of one of the names above."""
    found = configuration.find_keys([canonical(key)])
    return None if found is None or not found.texts else found.texts[0]


def _version(name: str, value: Any) -> ssl.TLSVersion:
    import ssl

    known = dict(zip(_VERSIONS, (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3), strict=True))
    if value in known.values():
        return cast("ssl.TLSVersion", value)
    try:
        return known[float(value)]
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{name}={value!r} is not supported, expected one of {[*_VERSIONS]}") from None
