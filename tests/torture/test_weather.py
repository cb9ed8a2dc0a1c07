"""What befalls a request behind a proxy follows from the seed and the request, not from chance."""

from collections import Counter
from random import Random

from tests.servers.faults import Fault, Turns
from tests.torture.faulty import KINDS, READS, WRITES, Befell, Weather, lacking, matrix

_RUNS = ("0123456789", "abcdef0123")


def _asked(run: str) -> list[tuple[str, str]]:
    """Requests of one run: beside each other, and each several times."""
    driver = f"/b-{run}00/out/_featlib/d/drivers/{run}ff.claim"
    pieces = [f"/b-{run}00/out/_featlib/d/stage/00000/{run}-0-{i:08d}-{run * 6}.piece" for i in range(40)]
    parts = [f"/b-{run}00/out/features/dataset=d/model=a/part-{i:05d}.parquet" for i in range(40)]
    return [(method, path) for path in (driver, *pieces, *parts) for method in ("PUT", "GET", "HEAD")] * 3


def _fell(weather: Weather, asked: list[tuple[str, str]], run: str) -> dict[tuple[str, str], list[Fault | None]]:
    """What befell each request, in turn."""
    found: dict[tuple[str, str], list[Fault | None]] = {}
    for method, path in asked:
        found.setdefault((method, path.replace(run, "")), []).append(weather(method, path))
    return found


def test_a_seed_repeats_its_faults_in_any_order_and_under_other_ids() -> None:
    first, second = (_asked(run) for run in _RUNS)
    Random(0).shuffle(second)
    weathers = [Weather("7 grown", 0.3) for _ in range(2)]
    found = _fell(weathers[0], first, _RUNS[0])
    assert found == _fell(weathers[1], second, _RUNS[1])
    assert weathers[0].befell == weathers[1].befell
    assert found != _fell(Weather("8 grown", 0.3), first, _RUNS[0])
    assert len({tuple(faults) for faults in found.values()}) > 50, "each request has faults of its own"


def test_as_many_requests_are_spoilt_as_was_asked_for() -> None:
    weather = Weather(1, 0.3)
    for method, path in _asked(_RUNS[0]) * 4:
        weather(method, path)
    assert 0.25 < weather.faults / weather.count < 0.35
    assert {kind for _, kind in weather.befell} == set(KINDS)


def test_places_of_flipped_bits_follow_from_the_seed() -> None:
    def places(seed: object, run: str) -> list[int]:
        turns = Turns(seed)
        return [turns.next(*asked).randrange(1 << 20) for asked in _asked(run)]

    assert places(1, _RUNS[0]) == places(1, _RUNS[1])
    assert places(1, _RUNS[0]) != places(2, _RUNS[0])


def test_kinds_of_faults_that_did_not_come_about_are_named() -> None:
    everything: Befell = Counter({(method, kind): 99 for method in (*READS, *WRITES) for kind in KINDS})
    assert lacking(everything) == []
    some = Counter({place: n for place, n in everything.items() if place not in (("PUT", "reset"), ("POST", "reset"))})
    assert lacking(some) == ["no write met reset"]
    assert lacking(Counter({("GET", "reset"): 299})) == [], "too few to tell"
    assert "no read met flip_answer" in lacking(Counter({("GET", "reset"): 300}))


def test_the_matrix_has_a_line_a_kind() -> None:
    lines = matrix(Counter({("GET", "reset"): 7, ("POST", "stall"): 12})).splitlines()
    assert [line.split() for line in lines] == [
        ["GET", "HEAD", "PUT", "POST"],
        ["reset", "7", "0", "0", "0"],
        ["stall", "0", "0", "0", "12"],
    ]
