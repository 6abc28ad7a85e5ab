import base64
from html.parser import HTMLParser
from xml.etree import ElementTree

from written_runs import write_run

from rewarm.report.collect_runs import collect_runs
from rewarm.report.html_loss_scatter import loss_scatter_section


class Images(HTMLParser):
    """The attributes of a page's images."""

    def __init__(self, text):
        super().__init__()
        self.attributes = []
        self.feed(text)

    def handle_startendtag(self, tag, attributes):
        if tag == "img":
            self.attributes.append(dict(attributes))


def images(paths):
    return Images(loss_scatter_section(collect_runs(paths))).attributes


def test_images_are_svg_with_a_text_alternative(tmp_path):
    runs = [write_run(tmp_path / name, peak=peak) for name, peak in (("a", 3e-4), ("b", 1e-4))]
    final, trajectories = images(runs)
    assert final["alt"].startswith(
        "Final losses on downstream. Final upstream and downstream loss: a "
    )
    assert "Pareto front: " in final["alt"]
    assert trajectories["alt"].startswith("Loss trajectories on downstream. ")
    for image in (final, trajectories):
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/svg+xml;base64"
        texts = {
            "".join(text.itertext()).strip()
            for text in ElementTree.fromstring(base64.b64decode(data)).iter(
                "{http://www.w3.org/2000/svg}text"
            )
        }
        assert {"a", "b", "upstream loss", "downstream loss"} <= texts


def test_one_arm_has_only_its_trajectory(tmp_path):
    [image] = images([write_run(tmp_path / "a")])
    assert image["alt"].startswith("Loss trajectories on ")


def test_without_a_second_validation_set_there_are_no_images(tmp_path):
    run = write_run(tmp_path / "a")
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("downstream/loss", "downstream/other"))
    assert images([run]) == []
