"""WikiText's text against the lm-evaluation-harness's, and its words against its authors' count."""

import pytest
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

from eval.scoring.detokenize import detokenize, load_wikitext
from prepare.common.cli import UserError

SAMPLE = """ \n = Title = \n \n He said " it 's 1 @,@ 000 @.@ 5 " ( or [ so ] ) : the dogs ' well @-@ known N ; no ! ?
 12 ° \n
 = = Part = = \n \n = = = Smaller = = = \n"""


def test_a_sample_is_the_harness_s():
    assert detokenize(SAMPLE) == wikitext_detokenizer({"page": SAMPLE})
    assert "He said \"it's 1,000.5\" (or [so]): the dogs' well-known" in detokenize(SAMPLE)


def test_the_real_test_set_is_the_harness_s_and_has_the_published_number_of_words(real_data):
    path = real_data / "wikitext103_test.tokens"
    found = load_wikitext(path)
    assert found.detokenized == wikitext_detokenizer({"page": path.read_text(encoding="utf-8")})
    assert found.words == 245_569  # Merity et al. 2016, table 1


def test_files_that_are_not_wikitext_are_errors(tmp_path):
    (tmp_path / "other.txt").write_text("Some text.\n")
    for name, remedy in (("absent", r"eval_sets\.py"), ("other.txt", r"wiki\.test\.tokens")):
        with pytest.raises(UserError, match=remedy):
            load_wikitext(tmp_path / name)
