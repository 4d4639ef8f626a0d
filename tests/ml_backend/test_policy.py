"""The learning policy: read from two files, what is wrong named."""

import pytest

from ml_backend.policy import FinetunePolicy, LearningPolicy, LearningPolicyError, policy_files, read_learning_policy


def write(home, text, project=None):
    file = policy_files(home, project or 7)[0 if project is None else 1]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_a_projects_own_file_goes_before_everybodys(tmp_path):
    assert read_learning_policy(tmp_path, 7) == LearningPolicy()
    write(tmp_path, "first = 5\nheld_out = 0.2\n")
    write(tmp_path, "first = 9\n", project=7)
    assert read_learning_policy(tmp_path, 7) == LearningPolicy(first=9, held_out=0.2)
    assert read_learning_policy(tmp_path, 8) == LearningPolicy(first=5, held_out=0.2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("first = true", "first must be a whole number"),
        ("learn = 1", "learn must be true or false"),
        ("tolerance = 2", "tolerance is 2"),
        ("frist = 3", "frist is not a known key"),
        ("first = ", "is not valid TOML"),
        ("train = 3", "train must be a table"),
        ("[train]\nlabel = 3", "train.label is not a known key. Known keys: on, labels"),
        ("[train]\nlabels = 1", "train.labels is 1"),
        ('[train]\nwhere = "moon"', "train.where is 'moon'; it must be one of: anywhere, worker, trainer"),
        ('[train]\nhours = "22-6"', "train.hours is '22-6'; it must be hours such as"),
        ('[train]\ntime_zone = "Mars/Olympus"', "train.time_zone is 'Mars/Olympus', no time zone"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_file(tmp_path, text, said):
    file = write(tmp_path, text)
    with pytest.raises(LearningPolicyError, match=said) as caught:
        read_learning_policy(tmp_path, 7)
    assert str(file) in str(caught.value)


def test_the_tables_of_both_files_are_merged(tmp_path):
    write(tmp_path, '[train]\nlabels = 50\nhours = "22:00-06:00"\non = false\n')
    write(tmp_path, "first = 3\n[train]\nlabels = 60\nminutes = 5\non = true\n", project=7)
    expected = FinetunePolicy(labels=60, hours="22:00-06:00", minutes=5.0, on="on")
    assert read_learning_policy(tmp_path, 7) == LearningPolicy(first=3, train=expected)
    assert read_learning_policy(tmp_path, 8).train.on == "off"
