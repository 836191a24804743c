"""The evaluation sets that others published: where they are, where they go, and how they are recognized."""

from dataclasses import dataclass
from pathlib import Path

from prepare.cli import DATA
from prepare.download import fetch_url


@dataclass(frozen=True)
class KnownFile:
    """A published file, its usual place here, and its sha256 or its id as a git blob."""

    path: Path
    url: str
    sha256: str | None = None
    git_blob: str | None = None

    def fetch(self, folder: Path | None = None, url: str | None = None) -> Path:
        """Bring it to its place, or into `folder`, unless it is there and right already. UserError if that fails."""
        path = self.path if folder is None else folder / self.path.name
        return fetch_url(url or self.url, path, self.sha256, self.git_blob)


HELLASWAG = KnownFile(
    DATA / "hellaswag_val.jsonl",
    "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
    git_blob="0f5ee25d72216f12317d5d8a7b92deafa423d81e",
)
LAMBADA = KnownFile(
    DATA / "lambada_test.jsonl",
    "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
    sha256="4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
)
