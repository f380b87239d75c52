from kvbench.config.text import counted


def test_a_noun_follows_its_number():
    assert [counted(n, "sample") for n in (0, 1, 2, 1000)] == [
        "0 samples",
        "1 sample",
        "2 samples",
        "1,000 samples",
    ]
    # the formatted number decides
    assert [counted(n, "sample", ".3g") for n in (1.0, 1.5, 1.0001)] == [
        "1 sample",
        "1.5 samples",
        "1 sample",
    ]
