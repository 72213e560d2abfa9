"""An S3-like store: the writer dies before or after any request, or a reply is lost."""

import pickle

import pytest
from faults.proxy import Moto, Proxy
from faults.scenario import PROBLEM, check, save, state_of

from dasknmf.numerics.errors import FencedError, StoreError
from dasknmf.storage.objects import open_objects, probe
from dasknmf.storage.runs import Run, read_newest, verify

pytest.importorskip("obstore", reason="the extra dasknmf[cloud] is not installed")
pytest.importorskip("moto", reason="moto is not installed")


@pytest.fixture(scope="module")
def moto():
    with Moto() as server:
        server.bucket("runs")
        yield server


@pytest.fixture
def proxy(moto):
    with Proxy(moto.address) as running:
        yield running


def opened(address, where, **options):
    return open_objects(
        f"s3://runs/{where}",
        {
            "endpoint": address,
            "access_key_id": "a",
            "secret_access_key": "b",
            "region": "us-east-1",
            "client_options": {"allow_http": True, "timeout": "10s"},
            "retry_config": {"max_retries": 0},
            **options,
        },
    )


def direct(moto, where):
    return opened(f"http://{moto.address[0]}:{moto.address[1]}", where)


def disturbed(objects):
    acknowledged = attempted = 0
    try:
        run = Run.start(objects, PROBLEM, heartbeat=0)
    except StoreError:
        return 0, 0
    for state in range(1, 5):
        attempted = state
        try:
            save(run, state)
            acknowledged = state
        except FencedError:
            raise
        except StoreError:
            continue
    run.close()
    return acknowledged, attempted


def faults_everywhere(moto, proxy, kind, every=1, offset=0):
    for checked, at in enumerate(range(1 + offset, 10_000, every)):
        proxy.reset(lambda number, at=at: kind if number == at else None)
        where = f"{kind}-{every}-{at}"
        acknowledged, attempted = disturbed(opened(proxy.url, where))
        if proxy.count < at:
            assert acknowledged == 4
            return checked
        check(direct(moto, where), acknowledged, attempted, takeover=True)
    raise AssertionError("the requests never end")


@pytest.mark.parametrize("kind", ["before", "after", "lost"])
def test_faults_at_every_31st_request(moto, proxy, cases, kind):
    offset = ["before", "after", "lost"].index(kind) * 9
    cases("S3 requests", faults_everywhere(moto, proxy, kind, 31, offset))


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["before", "after", "lost"])
def test_faults_at_every_request(moto, proxy, cases, kind):
    checked = faults_everywhere(moto, proxy, kind)
    assert checked >= 34
    cases("S3 requests", checked)


def test_objects_of_s3(moto):
    objects = pickle.loads(pickle.dumps(direct(moto, "objects")))
    assert "secret" not in repr(objects)
    probe(objects)
    objects.check_exclusive()
    assert objects.create("a/b.json", b"one")
    assert objects.create("a/b.json", b"one")  # as after a lost reply
    assert not objects.create("a/b.json", b"two")
    objects.put("a/c/d", b"")
    assert objects.list("a") == ["a/b.json", "a/c/d"]
    assert objects.names("a") == ["b.json", "c"]
    assert abs(objects.now() - objects.modified("a/b.json")) < 60
    objects.clear("a")
    objects.delete("a/b.json")
    assert objects.list() == []
    assert objects.modified("a/b.json") is None


def test_a_store_that_ignores_conditions_is_refused(proxy):
    proxy.ignore_conditions = True
    with pytest.raises(StoreError, match="conditional_put='etag'"):
        Run.start(opened(proxy.url, "ignores"), PROBLEM, heartbeat=0)


def test_a_store_without_conditions_is_refused(moto, proxy):
    objects = opened(proxy.url, "disabled", conditional_put="disabled")
    with pytest.raises(StoreError, match="conditional_put='etag'"):
        Run.start(objects, PROBLEM, heartbeat=0)
    assert direct(moto, "disabled").list() == []


def test_fencing_on_s3(moto):
    objects = direct(moto, "fencing")
    first = Run.start(objects, PROBLEM, heartbeat=0)
    save(first, 1)
    with Run.start(objects, PROBLEM, takeover=True, heartbeat=0) as second:
        with pytest.raises(FencedError):
            save(first, 2)
        save(second, 3)
        assert state_of(objects, read_newest(objects)) == 3
    first.close()
    assert verify(objects) == []


def test_an_unreachable_store_says_so(proxy):
    proxy.reset(lambda number: "before")
    with pytest.raises(StoreError, match=r"writing s3://runs/away/.* failed.*network") as caught:
        probe(opened(proxy.url, "away"))
    assert caught.value.__cause__ is not None
