"""The file of definitions that a broker imports at its start: alone, or with the rest of a Compose deployment."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from ops import definitions, store
from ops.errors import OpsError
from ops.files import replace_file
from ops.given import Given
from ops.provision import Provision

if TYPE_CHECKING:
    from pathlib import Path

    from ops.apply import Document


class DefinitionsFile:
    """A file whose users and passwords are somebody else's business."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Document:
        """What the broker imports at its next start.

        Raises:
            OpsError: there is no such file, or no definitions in it.
        """
        try:
            found: Document = json.loads(self.path.read_bytes())
            if not all(user["password_hash"] for user in found["users"]):
                raise ValueError("users")
        except OSError as exc:
            raise OpsError(
                f"{self.path} cannot be read ({exc.strerror}): name the file that the broker imports"
            ) from exc
        except (ValueError, KeyError, TypeError) as exc:
            raise OpsError(f"{self.path} holds no definitions: name the file that the broker imports") from exc
        return found

    def wanted(self, version: tuple[int, int], vhost: str) -> Document:
        """The table's definitions, for the users of the file.

        Raises:
            OpsError: see `read`.
        """
        hashes = {user["name"]: user["password_hash"] for user in self.read()["users"]}
        return definitions.build(hashes, rabbitmq=version, vhost=vhost)

    def unknown(self) -> list[str]:
        """The roles that have no password here.

        Raises:
            OpsError: see `read`.
        """
        known = {user["name"] for user in self.read()["users"]}
        return [role for role in definitions.roles() if role not in known]

    def write(self, version: tuple[int, int], vhost: str) -> Document:
        """Write the table's definitions, and give what was written.

        Raises:
            OpsError: the file cannot be written.
        """
        document = self.wanted(version, vhost)
        self.replace(document)
        return document

    def replace(self, document: Document) -> None:
        """Write other definitions, in one step.

        Raises:
            OpsError: the file cannot be written.
        """
        try:
            owner = self.path.stat()
            staged = self.path.with_name(f".{self.path.name}.new")
            replace_file(staged, json.dumps(document, indent=1).encode() + b"\n", owner.st_mode & 0o777)
            os.chown(staged, owner.st_uid, owner.st_gid)
            staged.replace(self.path)
        except OSError as exc:
            raise OpsError(f"{self.path} cannot be written ({exc.strerror}): run as its owner") from exc

    def finish(self) -> None:
        """Tell whoever else reads these files; nobody does."""


class SecretsFolder(DefinitionsFile):
    """The folder of `ops.provision`, with every password and certificate of the deployment."""

    def __init__(self, folder: Path, rotate: tuple[str, ...] = ()) -> None:
        super().__init__(folder / "rabbitmq" / "definitions.json")
        self.folder, self._rotate = folder, rotate
        self._provision = Provision(folder, Given.from_env(os.environ), take_topology=True)

    def unknown(self) -> list[str]:
        """None: whoever has no password gets one."""
        return []

    def wanted(self, version: tuple[int, int], vhost: str) -> Document:
        """The table's definitions; a role that has no password yet gets one when they are written."""
        return definitions.build(dict.fromkeys(definitions.roles(), ""), rabbitmq=version, vhost=vhost)

    def write(self, version: tuple[int, int], vhost: str) -> Document:  # noqa: ARG002 - provision knows both
        """Make what is asked for and what is missing, write all files, and give the definitions."""
        if "passwords" in self._rotate:
            self._provision.rotate_passwords()
        else:
            self._provision.retire()
        if "certificates" in self._rotate:
            self._provision.rotate_certificates()
        self._provision.run()
        return self.read()

    def finish(self) -> None:
        """Have Valkey read its files again; RabbitMQ looks at its certificate by itself."""
        store.refresh(self.folder)
