"""A private Postfix from the system's packages: STARTTLS and AUTH required, every mail kept in a folder.

It needs root, as Postfix does; the system's own instance, if there is one, is not touched.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ops.certs import Authority
from ops.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

MASTER = Path("/usr/lib/postfix/sbin/master")
SASL_PASSWORD = Path("/usr/sbin/saslpasswd2")
USER, PASSWORD = "warren", "a password of the tests"
PATIENCE = 30.0
#: What it refuses, and with which words.
REFUSED = {
    "nobody@example.com": "550 5.1.1 No such user here",
    "full@example.com": "452 4.2.2 Mailbox full",
    "grey@example.com": "450 4.7.1 Greylisted, try again in 2 seconds",
}
SPOOL = ["active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"]
SERVICES = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
tlsmgr    unix  - - n 1000? 1 tlsmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
error     unix  - - n - - error
retry     unix  - - n - - error
virtual   unix  - n n - - virtual
anvil     unix  - - n - 1 anvil
postlog   unix-dgram n - n - 1 postlogd
"""


def missing() -> str | None:
    """Why Postfix cannot be run here, or None."""
    if not MASTER.exists() or not SASL_PASSWORD.exists():
        return "Postfix is not installed: run `ops/bootstrap broker postfix` as root"
    return None if os.geteuid() == 0 else "Postfix is started by root only"


class Postfix:
    """One running instance.

    Attributes:
        port: on 127.0.0.1; the certificate is for `localhost`.
        folder: everything of it.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.password_file = folder / "password"
        self.ca = folder / "certs" / "ca.crt"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The settings of a mail worker that sends through it."""
        return {
            "SMTP_HOST": "localhost",
            "SMTP_PORT": str(self.port),
            "SMTP_CA": str(self.ca),
            "SMTP_USER": USER,
            "SMTP_PASSWORD_FILE": str(self.password_file),
        }

    def prepare(self) -> None:
        """Write its configuration and make its folders."""
        postfix, drop = pwd.getpwnam("postfix"), grp.getgrnam("postdrop").gr_gid
        self.folder.chmod(0o755)
        for name in ("conf", "spool", "data", "mail", "sasl", "log"):
            (self.folder / name).mkdir()
        for name in SPOOL:
            self._own(self.folder / "spool" / name, postfix.pw_uid, 0, 0o700)
        self._own(self.folder / "spool" / "public", postfix.pw_uid, drop, 0o710)
        self._own(self.folder / "spool" / "maildrop", postfix.pw_uid, drop, 0o1730)
        (self.folder / "spool" / "pid").mkdir()
        self._own(self.folder / "data", postfix.pw_uid, 0, 0o700)
        self._own(self.folder / "mail", postfix.pw_uid, postfix.pw_gid, 0o700)
        identity = Authority.ensure(self.folder / "certs").server(["localhost"])
        self.password_file.write_text(PASSWORD)
        access = "".join(f"{address} {answer}\n" for address, answer in REFUSED.items())
        (self.folder / "conf" / "access").write_text(access)
        self._sasl(postfix.pw_uid)
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": self.folder / "spool",
            "data_directory": self.folder / "data",
            "maillog_file": self.folder / "log" / "mail.log",
            "maillog_file_prefixes": self.folder,
            "daemon_directory": MASTER.parent,
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "myhostname": "localhost",
            "mydestination": "",
            "mynetworks": "192.0.2.1/32",
            "alias_maps": "",
            "default_transport": "error:this instance sends nothing away",
            "virtual_mailbox_domains": "example.com example.test",
            "virtual_mailbox_maps": "static:all/",
            "virtual_mailbox_base": self.folder / "mail",
            "virtual_minimum_uid": "1",
            "virtual_uid_maps": f"static:{postfix.pw_uid}",
            "virtual_gid_maps": f"static:{postfix.pw_gid}",
            "smtpd_tls_security_level": "encrypt",
            "smtpd_tls_cert_file": identity.cert,
            "smtpd_tls_key_file": identity.key,
            "smtpd_sasl_auth_enable": "yes",
            "smtpd_sasl_local_domain": "localhost",
            "smtpd_relay_restrictions": "permit_sasl_authenticated reject",
            "smtpd_recipient_restrictions": f"check_recipient_access texthash:{self.folder / 'conf' / 'access'}",
        }
        main = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.folder / "conf" / "main.cf").write_text(main)
        (self.folder / "conf" / "master.cf").write_text(SERVICES.format(port=self.port))

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            RuntimeError: it ended, or does not answer.
        """
        command = [str(MASTER), "-c", str(self.folder / "conf"), "-d"]
        with (self.folder / "log" / "master.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        limit = time.monotonic() + PATIENCE
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"Postfix does not answer: {self.log()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it with all of its processes."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE)
            self.process = None

    def log(self) -> str:
        """Its log."""
        return "".join(path.read_text(errors="replace") for path in sorted((self.folder / "log").iterdir()))

    def mails(self) -> list[bytes]:
        """The mails that it has delivered."""
        return [path.read_bytes() for path in (self.folder / "mail").glob("**/new/*")]

    def taken(self) -> int:
        """How many mails it has taken, delivered or not yet."""
        return self.log().count(" message-id=<")

    def _answers(self) -> bool:
        import smtplib

        try:
            with smtplib.SMTP("127.0.0.1", self.port, timeout=5) as smtp:
                return smtp.noop()[0] == 250
        except (OSError, smtplib.SMTPException):
            return False

    def _sasl(self, uid: int) -> None:
        database = self.folder / "sasl" / "users"
        (self.folder / "conf" / "sasl").mkdir()
        (self.folder / "conf" / "sasl" / "smtpd.conf").write_text(
            f"pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {database}\nmech_list: PLAIN LOGIN\n"
        )
        subprocess.run(
            [str(SASL_PASSWORD), "-p", "-c", "-f", str(database), "-u", "localhost", USER],
            input=PASSWORD.encode(),
            check=True,
            capture_output=True,
        )
        os.chown(database, uid, 0)

    @staticmethod
    def _own(path: Path, uid: int, gid: int, mode: int) -> None:
        path.mkdir(exist_ok=True)
        os.chown(path, uid, gid)
        path.chmod(mode)


@contextlib.contextmanager
def running() -> Iterator[Postfix]:
    """An instance, in a folder that its user may enter, and that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="warren-postfix-"))
    postfix = Postfix(folder, free_port())
    try:
        postfix.prepare()
        postfix.start()
        yield postfix
    finally:
        postfix.stop()
        shutil.rmtree(folder, ignore_errors=True)
