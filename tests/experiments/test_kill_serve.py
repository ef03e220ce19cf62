"""The campaign that kills a service notices what the service has lost."""

import pytest

from experiments.reliability.kill_serve import Client


class Fake:
    """A service that keeps listings in memory, and stops answering after so many changes."""

    def __init__(self, left):
        self.left, self.prices = left, {}

    def ask(self, method, path, body=None):
        if self.left == 0:
            return 0, {}
        self.left -= 1
        if method == "DELETE":
            del self.prices[path.partition("=")[2]]
        else:
            one = body["listings"][0] if method == "POST" else body
            self.prices[one["listing_id"]] = one["extra"]["price"]
        return 200, {}

    def price(self, name):
        return self.prices.get(name)


@pytest.fixture
def worked():
    client, service = Client("c", 0), Fake(30)
    client.work(service, 0)
    assert client.acknowledged == 30
    assert client.held == service.prices
    assert client.under_way is not None
    return client, service


def test_nothing_lost_is_no_problem(worked):
    client, service = worked
    assert client.lost(service) == []
    assert client.under_way is None


def test_the_change_without_an_answer_may_be_there(worked):
    client, service = worked
    service.prices = dict(client.after())
    assert client.lost(service) == []
    assert client.held == service.prices


@pytest.mark.parametrize("harm", ["lost", "old"])
def test_what_was_acknowledged_must_be_there(worked, harm):
    client, service = worked
    name = next(x for x in client.held if x != client.under_way[0])
    if harm == "lost":
        del service.prices[name]
    else:
        service.prices[name] = 0
    assert any(name in x for x in client.lost(service))
