import pytest
from inboxes import serve_mail, serve_webhook
from network import find_free_port

from tasks.errors import ParamsInvalid
from tasks.follow_up.channels import check_url, send_message

BODY = "first line\n<b>& second</b> line, é\nnightjar status orders"


def test_a_mail_and_a_webhook_get_the_message_as_it_is() -> None:
    with serve_mail() as mail, serve_webhook() as hook:
        for inbox in (mail, hook):
            assert send_message(inbox.url, "orders: é", BODY) == ""
            assert inbox.messages == [("orders: é", BODY)]


def test_a_channel_that_refuses_says_so() -> None:
    with serve_mail() as mail, serve_webhook() as hook:
        mail.is_down = hook.is_down = True
        assert "ending email" in send_message(mail.url, "T", BODY)
        assert "503" in send_message(hook.url, "T", BODY)


@pytest.mark.parametrize("scheme", ["json", "mailto"])
def test_a_channel_that_nobody_serves_says_so_without_its_password(scheme: str) -> None:
    url = f"{scheme}://user:sesame7f@127.0.0.1:{find_free_port()}?from=a@example.org&to=b@example.org"
    check_url("mail", url)
    said = send_message(url, "T", BODY)
    assert "onnection error" in said
    assert "sesame7f" not in said


@pytest.mark.parametrize("url", ["", "nonsense://sesame7f", "mailto://", "slack://sesame7f", "sesame7f", "json://"])
def test_an_address_of_no_service_is_refused_and_shown_nowhere(url: str, caplog: pytest.LogCaptureFixture) -> None:
    assert send_message(url, "T", BODY) == "its URL is not one that Apprise knows"
    with pytest.raises(ParamsInvalid, match="The address of channel desk is not one") as refused:
        check_url("desk", url)
    assert "NIGHTJAR_CHANNEL_DESK" in str(refused.value)
    assert "sesame7f" not in str(refused.value)
    assert not caplog.records
