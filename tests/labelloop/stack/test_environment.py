"""`settings.env`: secrets are created once, readable by the owner only, read by `Settings`; other lines stay."""

from labelloop.service.settings import Settings, settings_file
from labelloop.stack.environment import read_env, with_secrets, write_env


def test_settings_read_what_was_written(tmp_path):
    write_env(tmp_path, {"LABELLOOP_LABEL_STUDIO_URL": "http://localhost:8123", "LABELLOOP_WEBHOOK_SECRET": "s3cret"})
    settings = Settings(home=tmp_path)
    assert settings.label_studio_url == "http://localhost:8123"
    assert settings.webhook_secret.get_secret_value() == "s3cret"


def test_only_the_owner_may_read_it(tmp_path):
    write_env(tmp_path, {"A": "1"})
    write_env(tmp_path, {"A": "2"})
    assert settings_file(tmp_path).stat().st_mode & 0o777 == 0o600


def test_lines_of_the_user_stay_and_values_are_replaced_in_place(tmp_path):
    settings_file(tmp_path).write_text("# mine\nLABELLOOP_S3_REGION=eu-west-1\nA=old\n#A=commented\n")
    write_env(tmp_path, {"A": "new", "B": "b=c"})
    assert settings_file(tmp_path).read_text() == "# mine\nLABELLOOP_S3_REGION=eu-west-1\nA=new\n#A=commented\nB=b=c\n"
    assert read_env(tmp_path) == {"LABELLOOP_S3_REGION": "eu-west-1", "A": "new", "B": "b=c"}


def test_a_secret_is_made_once():
    first = with_secrets({"A": "", "B": "kept"}, ("A", "B", "C"))
    assert first["B"] == "kept"
    assert len({*first.values()}) == 3
    assert min(map(len, first.values())) >= 4
    assert with_secrets(first, ("A", "B", "C")) == first
