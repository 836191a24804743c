"""The published evaluation sets: their URLs, their paths here, and their checksums."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from prepare.common.cli import DATA
from prepare.common.files import atomic_write_text
from prepare.sources.hub import fetch_hub_file, fetch_url


@dataclass(frozen=True)
class PublishedFile:
    """A published file, its default path here, and its sha256."""

    path: Path
    url: str
    sha256: str

    def fetch(self, folder: Path) -> Path:
        """Download it into `folder`, unless it is there. UserError if that fails."""
        return fetch_url(self.url, folder / self.path.name, self.sha256)


@dataclass(frozen=True)
class PublishedText:
    """A text file that a dataset repository on the hub stores as parquet, one row a line. The hub states its hash.

    Blank lines, " \\n" in WikiText, are empty rows there.
    """

    path: Path
    repo: str
    file: str
    revision: str

    def fetch(self, folder: Path) -> Path:
        """Download it into `folder`, unless it is there. UserError if that fails."""
        path = folder / self.path.name
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                rows = pq.read_table(fetch_hub_file(self.repo, self.file, self.revision, Path(temporary)))
            atomic_write_text(path, "".join(line or " \n" for line in rows["text"].to_pylist()))
        return path


HELLASWAG = PublishedFile(
    DATA / "hellaswag_val.jsonl",
    "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
    "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
)
LAMBADA = PublishedFile(
    DATA / "lambada_test.jsonl",
    "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
    "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
)

# The test sets as Merity et al. (2016) published them, with <unk>; their URL no longer works.
_WIKITEXT = "Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3"
WIKITEXT2 = PublishedText(
    DATA / "wikitext2_test.tokens", _WIKITEXT[0], "wikitext-2-v1/test-00000-of-00001.parquet", _WIKITEXT[1]
)
WIKITEXT103 = PublishedText(
    DATA / "wikitext103_test.tokens", _WIKITEXT[0], "wikitext-103-v1/test-00000-of-00001.parquet", _WIKITEXT[1]
)
