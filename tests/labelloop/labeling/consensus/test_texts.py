"""Texts and transcripts: the weighted medoid, by jiwer's word error rate as the referee."""

import random

import jiwer
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from labelloop.labeling.consensus.texts import fit_text_accuracy, merge_texts, similarities, text_similarity

TEXT = (
    "the quick brown fox jumps over a lazy dog while seven silver birds sing about old rivers and distant mountains "
    "under pale morning light"
)
WORDS = TEXT.split()


def transcripts(rates, *, items=120, seed=0):
    """(texts on each item, true texts) of annotators who drop, replace or shorten words with their rate."""
    rng = random.Random(seed)
    answers, truths = [], []
    for _ in range(items):
        truth = rng.choices(WORDS, k=rng.randint(6, 18))
        texts = []
        for annotator, rate in enumerate(rates):
            heard = []
            for word in truth:
                draw = rng.random() / rate
                if draw >= 0.3:
                    heard.append(rng.choice(WORDS) if draw < 0.7 else word[:-1] or word if draw < 1 else word)
            texts.append((annotator, " ".join(heard)))
        answers.append(tuple(texts))
        truths.append(" ".join(truth))
    return answers, truths


def test_consensus_is_no_worse_than_the_best_annotator():
    for rates in ([0.02, 0.15, 0.3], [0.1, 0.1, 0.1], [0.05, 0.2, 0.2, 0.3, 0.4]):
        answers, truths = transcripts(rates)
        accuracy = fit_text_accuracy([similarities(texts) for texts in answers])
        chosen = [merge_texts(texts, accuracy).chosen for texts in answers]
        single = [jiwer.wer(truths, [texts[who][1] for texts in answers]) for who in range(len(rates))]
        assert jiwer.wer(truths, chosen) <= min(single)
        if len(set(rates)) > 1:
            assert np.corrcoef([accuracy[who] for who in range(len(rates))], single)[0, 1] < -0.9


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_chosen_text_is_one_that_was_written(texts):
    merged = merge_texts(tuple(enumerate(texts)))
    assert merged.chosen == texts[merged.annotator]
    assert 0 <= merged.similarity <= 1
    counts = {text: texts.count(text) for text in texts}
    if max(counts.values()) > len(texts) / 2:
        assert text_similarity(merged.chosen, max(counts, key=counts.get)) == 1


def test_long_texts_are_compared_to_their_end():
    long = "word " * 5000
    assert text_similarity(f"{long}yes", f"{long}no") < 1
