"""Every route of the server: what it answers, that pictures are the library's own bytes, and how it says no."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from serving import Server, argmax_package, png
from tiny_labels import LABELS, label_ids, label_package, scene
from tiny_mmseg import slide, street_package
from tiny_package import tiny_package
from tiny_saliency import saliency_package

from segship.cli import run
from segship.errors import UsageError
from segship.inference.cutout import check
from segship.inference.options import OutputOptions
from segship.inference.predictor import Predictor
from segship.serve.answers import possible_outputs, summary

PICTURE = png(1)
FILE = {"file": ("a.png", PICTURE, "image/png")}


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A server of one class and a threshold."""
    with (
        Predictor.open(tiny_package(tmp_path_factory.mktemp("serve") / "bright.segship", int8=False)) as predictor,
        Server(predictor) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def standout(tmp_path_factory):
    """A server of a saliency map."""
    with (
        Predictor.open(saliency_package(tmp_path_factory.mktemp("serve") / "object.segship", size=64)) as predictor,
        Server(predictor) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A server of one class a pixel."""
    package = argmax_package(tmp_path_factory.mktemp("serve") / "three.segship")
    with Predictor.open(package) as predictor, Server(predictor) as server:
        yield server


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """A server of Cityscapes' classes, none of them a background."""
    package = label_package(tmp_path_factory.mktemp("serve") / "street.segship", int8=False)
    with Predictor.open(package) as predictor, Server(predictor) as server:
        yield server


def refusal(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    said = answer.json()
    assert set(said) == {"error", "hint"}
    assert said["error"]
    assert said["hint"]
    return f"{said['error']}; {said['hint']}"


# ------------------------------------------------------------------------------------------- /v1/predict


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"output": "mask", "threshold": "0.9"}, {"threshold": 0.9}),
        ({"clean_mask": "true", "rgb_mask": "1"}, {"clean_mask": True, "rgb_mask": True}),
        ({"output": "overlay"}, {"kind": "overlay"}),
        ({"output": "cutout"}, {"kind": "cutout"}),
        ({"output": "cutout", "cutout_style": "rembg"}, {"kind": "cutout", "cutout_style": "rembg"}),
        ({"output": "composite", "background": "10,200,30"}, {"kind": "composite", "background": (10, 200, 30)}),
        ({"output": "composite", "background": "#0008"}, {"kind": "composite", "background": (0, 0, 0, 136)}),
        ({"output": "composite"}, {"kind": "composite"}),
    ],
)
@pytest.mark.parametrize("which", ["classes", "standout"])
def test_pictures_are_the_library_s_own_bytes(which, fields, options, request):
    server = request.getfixturevalue(which)
    answer = server.ask("POST", "/v1/predict", files=FILE, data=fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == server.predictor(PICTURE).encode(options=OutputOptions(**options))


def test_a_mask_is_the_file_that_predict_writes(classes, tmp_path):
    (tmp_path / "a.png").write_bytes(PICTURE)
    assert (
        run(
            ["predict", str(classes.predictor.package.path), str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "-q"]
        )
        == 0
    )
    answer = classes.ask("POST", "/v1/predict", files=FILE)
    assert answer.content == (tmp_path / "out" / "a.png").read_bytes()


def test_a_picture_can_be_the_whole_body_and_fields_the_address(standout):
    async def both(client):
        form = await client.post("/v1/predict", files=FILE, data={"output": "cutout", "threshold": "0.3"})
        params = {"output": "cutout", "threshold": 0.3}
        for kind in ("image/png", "application/octet-stream", "image/jpeg"):
            raw = await client.post("/v1/predict", params=params, content=PICTURE, headers={"content-type": kind})
            assert raw.content == form.content
        bare = await client.post("/v1/predict", params=params, content=PICTURE)
        mixed = await client.post("/v1/predict", params=params, files=FILE)
        assert bare.content == mixed.content == form.content

    standout.run(both)


def test_a_background_can_be_a_picture_but_never_a_path(standout, tmp_path):
    path = tmp_path / "b.png"
    path.write_bytes(png(2, 30, 40))

    async def three(client):
        as_file = {**FILE, "background": ("b.png", path.read_bytes(), "image/png")}
        sent = await client.post("/v1/predict", files=as_file, data={"output": "composite"})
        assert sent.content == standout.predictor(PICTURE).encode("composite", background=path.read_bytes())
        named = await client.post("/v1/predict", files=FILE, data={"output": "composite", "background": str(path)})
        assert "no colour" in refusal(named, 400)
        twice = await client.post("/v1/predict", files=as_file, data={"background": "white"})
        assert "twice" in refusal(twice, 400)
        broken = {**FILE, "background": ("b.png", b"no picture", "image/png")}
        refused = await client.post("/v1/predict", files=broken, data={"output": "composite"})
        assert "the background" in refusal(refused, 422)

    standout.run(three)


def test_the_map_is_the_probability_in_8_bits(classes, standout):
    for server in (classes, standout):
        answer = server.ask("POST", "/v1/predict", files=FILE, data={"output": "map"})
        sent = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(sent, np.rint(server.predictor(PICTURE).probabilities[0] * 255).astype(np.uint8))


def test_probabilities_come_as_they_are(classes):
    answer = classes.ask("POST", "/v1/predict", files=FILE, data={"output": "probabilities"})
    with np.load(io.BytesIO(answer.content)) as arrays:
        np.testing.assert_array_equal(arrays["probabilities"], classes.predictor(PICTURE).probabilities)
    assert answer.headers["content-disposition"] == 'inline; filename="probabilities.npz"'


def test_numbers_count_pixels_and_draw_a_box(classes):
    mask = classes.predictor(PICTURE).masks[0]
    rows, columns = np.nonzero(mask)
    said = classes.ask("POST", "/v1/predict", files=FILE, data={"output": "json"}).json()
    assert (said["height"], said["width"], said["threshold"]) == (80, 100, 0.5)
    box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    one = {"id": 1, "name": "nucleus", "pixels": int(mask.sum()), "fraction": float(mask.mean()), "box": box}
    assert said["classes"] == [one]
    nothing = classes.ask("POST", "/v1/predict", files=FILE, data={"output": "json", "threshold": "1"}).json()
    assert nothing["classes"] == [{"id": 1, "name": "nucleus", "pixels": 0, "fraction": 0.0, "box": None}]


def test_a_saliency_map_has_classes_only_with_a_threshold(standout):
    found = standout.predictor(PICTURE)
    decision = found.recipe.decode.decision.model_copy(update={"threshold": None})
    decode = found.recipe.decode.model_copy(update={"decision": decision})
    soft = summary(replace(found, recipe=found.recipe.model_copy(update={"decode": decode})))
    assert (soft["threshold"], soft["classes"]) == (None, None)
    assert soft["mean"] == pytest.approx(float(found.probabilities.mean()))
    hard = standout.ask("POST", "/v1/predict", files=FILE, data={"output": "json", "threshold": "0.8"}).json()
    assert hard["threshold"] == 0.8
    assert hard["classes"][0]["pixels"] == int((found.probabilities[0] > 0.8).sum()) > 0


def test_one_class_a_pixel(three):
    found = three.predictor(PICTURE)
    assert set(np.unique(found.labels)) == {0, 1, 2}
    labels = three.ask("POST", "/v1/predict", files=FILE).content
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(labels, np.uint8), cv2.IMREAD_UNCHANGED), found.labels)
    for label in (1, 2):
        sent = three.ask("POST", "/v1/predict", files=FILE, data={"output": "map", "label": str(label)}).content
        levels = np.rint(found.probabilities[label] * 255).astype(np.uint8)
        np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(sent, np.uint8), cv2.IMREAD_UNCHANGED), levels)
    said = three.ask("POST", "/v1/predict", files=FILE, data={"output": "json"}).json()
    assert [one["pixels"] for one in said["classes"]] == [int((found.labels == label).sum()) for label in (1, 2)]
    refused = three.ask("POST", "/v1/predict", files=FILE, data={"threshold": "0.4"})
    assert "threshold needs" in refusal(refused, 400)


@pytest.mark.parametrize("output", ["mask", "ids", "color", "cityscapes", "overlay"])
def test_label_files_are_those_that_predict_writes(street, tmp_path, output):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), scene(5)[0])
    command = ["predict", str(street.predictor.package.path), str(path), "-o", str(tmp_path / "out")]
    assert run([*command, "--output", output, "-q"]) == 0
    answer = street.ask("POST", "/v1/predict", files={"file": path.read_bytes()}, data={"output": output})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"] == f'inline; filename="{output}.png"'
    assert answer.content == (tmp_path / "out" / "a.png").read_bytes()


def test_numbers_of_a_street_count_its_first_class(street):
    picture = cv2.imencode(".png", scene(5)[0])[1].tobytes()
    labels = street.predictor(picture).labels
    classes = street.ask("POST", "/v1/predict", files={"file": picture}, data={"output": "json"}).json()["classes"]
    assert [one["name"] for one in classes] == [label.name for label in LABELS]
    assert classes[0]["pixels"] == int((labels == 0).sum()) > 0
    assert sum(one["fraction"] for one in classes) == pytest.approx(1)


def test_label_files_that_a_package_cannot_give_are_refused(street, three, standout):
    def refused(server, **fields):
        return refusal(server.ask("POST", "/v1/predict", files=FILE, data=fields), 400)

    assert "does not know the label ids of Cityscapes" in refused(three, output="cityscapes")
    assert "leave them out" in refused(street, output="ids", rgb_mask="true")
    assert "nothing to cut out" in refused(street, output="cutout")
    outputs = {name: server.ask("GET", "/v1/model").json()["outputs"] for name, server in (("street", street), ("three", three))}  # fmt: skip
    assert outputs["street"] == ["mask", "ids", "color", "cityscapes", "overlay", "map", "json", "probabilities"]
    assert {"ids", "color", "cutout"} <= set(outputs["three"])
    recipe = standout.predictor.manifest.recipe
    decision = recipe.decode.decision.model_copy(update={"threshold": None})
    greys = recipe.model_copy(update={"decode": recipe.decode.model_copy(update={"decision": decision})})
    assert {"mask", "cutout"} <= set(possible_outputs(greys)) < {"mask", "overlay", "cutout", "composite", "map", "json", "probabilities", "-"}  # fmt: skip
    with pytest.raises(UsageError, match="give a threshold"):
        check(greys, OutputOptions(kind="color"))
    ids = street.ask("POST", "/v1/predict", files=FILE, data={"output": "ids"}).content
    found = street.predictor(PICTURE).labels
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(ids, np.uint8), cv2.IMREAD_UNCHANGED), label_ids(found))
    colored = standout.ask("POST", "/v1/predict", files=FILE, data={"output": "color", "threshold": "0.5"})
    assert colored.content == standout.predictor(PICTURE).encode(options=OutputOptions(kind="color", threshold=0.5))


@pytest.mark.parametrize("tta", [None, "1.x"])
def test_windows_and_augmentation_give_the_files_of_predict(tmp_path, tta):
    package = street_package(tmp_path / "windows.segship", tiling=slide())
    path = tmp_path / "a.png"
    path.write_bytes(PICTURE)
    more = [] if tta is None else ["--tta", tta, "--tta-ratios", "0.5,1"]
    assert run(["predict", str(package.path), str(path), "-o", str(tmp_path / "out"), "-q", *more]) == 0
    ratios = None if tta is None else (0.5, 1.0)
    with Predictor.open(package, tta=tta, tta_ratios=ratios) as predictor, Server(predictor) as server:
        assert server.ask("POST", "/v1/predict", files=FILE).content == (tmp_path / "out" / "a.png").read_bytes()
        sent = server.ask("POST", "/v1/predict", files=FILE, data={"output": "probabilities"})
        assert sent.status_code == 200, sent.text
        assert server.ask("GET", "/v1/model").json()["serving"]["tta"] == tta


def test_answers_say_what_ran(classes):
    answer = classes.ask("POST", "/v1/predict", files=FILE)
    assert answer.headers["segship-package"] == classes.predictor.package.sha256
    assert answer.headers["segship-precision"] == "fp32 openvino"
    assert "work;dur=" in answer.headers["server-timing"]
    assert "segship-notes" not in answer.headers


def test_notes_travel_in_a_header(classes):
    black = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
    frames = io.BytesIO()
    from PIL import Image

    pages = [Image.new("RGB", (40, 40), color) for color in ("black", "white")]
    pages[0].save(frames, "TIFF", save_all=True, append_images=pages[1:])
    answer = classes.ask("POST", "/v1/predict", files={"file": ("a.tif", frames.getvalue())})
    assert "first is used" in answer.headers["segship-notes"]
    assert classes.ask("POST", "/v1/predict", files={"file": ("a.png", black)}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"output": "masks"}, 400, "one of mask, ids"),
        ({"tresholt": "0.5"}, 400, "did you mean 'threshold'"),
        ({"nonsense": "1"}, 400, "there are: output"),
        ({"threshold": "1.5"}, 400, "a number from 0 to 1"),
        ({"threshold": "nan"}, 400, "a number from 0 to 1"),
        ({"matting": "maybe"}, 400, "true or false"),
        ({"erode": "1e9"}, 400, "a whole number from 0 to 100"),
        ({"erode": "100000"}, 400, "a whole number from 0 to 100"),
        ({"label": "7"}, 400, "this package has: 0 background, 1 nucleus"),
        ({"background": "300,0,0"}, 400, "0..255"),
        ({"output": "x" * 500}, 400, "…"),
    ],
)
def test_fields_that_mean_nothing_are_refused(classes, fields, status, said):
    assert said in refusal(classes.ask("POST", "/v1/predict", files=FILE, data=fields), status)


def test_an_empty_field_counts_as_not_given(classes):
    answer = classes.ask("POST", "/v1/predict", files=FILE, data={"output": "", "threshold": " "})
    assert answer.content == classes.predictor(PICTURE).encode()


@pytest.mark.parametrize(
    "data", [b"no picture at all", PICTURE[:200], b"\xff\xd8\xff" + bytes(50), b"GIF89a" + bytes(9)]
)
def test_what_is_no_picture_is_refused(classes, data):
    said = refusal(classes.ask("POST", "/v1/predict", files={"file": ("a.png", data)}), 422)
    assert said.startswith("the picture")


# ------------------------------------------------------------------------------------------- /api/remove


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {"kind": "cutout"}),
        ({"om": "true"}, {}),
        ({"om": "true", "a": "true", "bgc": "1,2,3,255"}, {}),
        ({"ppm": "true"}, {"kind": "cutout", "clean_mask": True}),
        ({"bgc": "255,255,255,255"}, {"kind": "composite", "background": (255, 255, 255, 255)}),
        ({"bgc": "0,0,0,0"}, {"kind": "composite", "background": (0, 0, 0, 0)}),
        ({"model": "bright-object", "af": "200", "ab": "5", "ae": "3"}, {"kind": "cutout"}),
        ({"model": "One Convolution", "cutout_style": "rembg"}, {"kind": "cutout", "cutout_style": "rembg"}),
    ],
)
def test_remove_takes_rembg_s_fields(standout, fields, options):
    expected = standout.predictor(PICTURE).encode(options=OutputOptions(**options))
    answer = standout.ask("POST", "/api/remove", files=FILE, data=fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == expected
    in_the_address = standout.ask("POST", "/api/remove", files=FILE, params=fields)
    assert in_the_address.content == expected


def test_remove_estimates_alpha_as_the_library_does(standout):
    pytest.importorskip("pymatting")
    fields = {"a": "true", "af": "150", "ab": "20", "ae": "2"}
    options = OutputOptions(kind="cutout", matting=True, foreground_threshold=150, background_threshold=20, erode=2)
    answer = standout.ask("POST", "/api/remove", files=FILE, data=fields)
    assert answer.content == standout.predictor(PICTURE).encode(options=options)
    assert answer.content != standout.predictor(PICTURE).encode("cutout")


def test_remove_needs_a_saliency_map(classes):
    assert "POST /v1/predict" in refusal(classes.ask("POST", "/api/remove", files=FILE), 404)


def test_remove_has_one_model(standout):
    answer = standout.ask("POST", "/api/remove", files=FILE, data={"model": "isnet-general-use"})
    assert "it runs 'bright-object'" in refusal(answer, 400)


def test_remove_takes_forms_only(standout):
    answer = standout.ask("POST", "/api/remove", content=PICTURE, headers={"content-type": "image/png"})
    assert "curl -F file=@" in refusal(answer, 415)


def test_no_address_is_ever_fetched(standout):
    answer = standout.ask("GET", "/api/remove", params={"url": "http://127.0.0.1:1/picture.png"})
    assert "fetches nothing" in refusal(answer, 405)
    assert answer.headers["allow"] == "POST"
    posted = standout.ask("POST", "/api/remove", files=FILE, params={"url": "http://127.0.0.1:1/picture.png"})
    assert "no field 'url'" in refusal(posted, 400)


# ------------------------------------------------------------------------------------------- what it says


def test_model_says_what_is_inside_and_what_executed(classes, standout):
    about = classes.ask("GET", "/v1/model").json()
    assert about["name"] == "bright"
    assert about["sha256"] == classes.predictor.package.sha256
    assert about["labels"][1]["name"] == "nucleus"
    serving = about["serving"]
    assert (serving["precision"], serving["engine"], serving["device"]) == ("fp32", "openvino", "CPU")
    assert sum(serving["executed"]["convolution_share"].values()) == pytest.approx(1)
    assert about["limits"]["max_pixels"] == 50_000_000
    assert "cutout" in about["outputs"]
    assert str(classes.predictor.package.path) not in json.dumps(about)
    assert standout.ask("GET", "/v1/model").json()["decode"]["decision"]["rule"] == "saliency"


def test_health_and_metrics(classes):
    async def look(client):
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        await client.post("/v1/predict", files=FILE)
        await client.post("/v1/predict", files={"file": ("a.png", b"x")})
        await client.get("/nowhere/to/be/found")
        await client.request("BREW", "/healthz")
        said = (await client.get("/metrics")).text
        for line in (
            'segship_requests_total{method="POST",route="/v1/predict",status="200"} 1.0',
            'segship_requests_total{method="POST",route="/v1/predict",status="422"} 1.0',
            'segship_requests_total{method="GET",route="other",status="404"} 1.0',
            'segship_requests_total{method="OTHER",route="/healthz",status="405"} 1.0',
            "segship_requests_in_flight 0.0",
            "segship_queue_length 0.0",
            "segship_held_bytes 0.0",
            "segship_work_seconds_count 1.0",
            'segship_request_seconds_bucket{le="+Inf",route="/v1/predict"} 2.0',
        ):
            assert line in said.splitlines(), line
        assert "process_resident_memory_bytes" in said

    with Server(classes.predictor) as server:
        server.run(look)


def test_the_page_stands_on_its_own(classes):
    async def look(client):
        scripts = [(f"/{name}.js", "text/javascript") for name in ("page", "common", "picture")]
        for path, kind in [("/", "text/html"), ("/page.css", "text/css"), *scripts]:
            answer = await client.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(kind)
            assert "https://" not in answer.text
            assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
            assert answer.headers["x-content-type-options"] == "nosniff"

    classes.run(look)


def test_openapi_lists_the_fields(classes):
    paths = classes.ask("GET", "/openapi.json").json()["paths"]
    form = paths["/v1/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"file", "output", "threshold", "background"} <= set(form["properties"])
    assert {"mask", "ids", "color", "cityscapes", "overlay"} <= set(form["properties"]["output"]["enum"])
    assert {"file", "a", "af", "ab", "ae", "om", "ppm", "bgc", "model"} <= set(
        paths["/api/remove"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    )


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/x", 404), ("PUT", "/v1/predict", 405), ("GET", "/v1/predict", 405), ("GET", "/../../etc/passwd", 404), ("GET", "/docs", 404)])  # fmt: skip
def test_other_addresses(classes, method, path, status):
    assert "POST /v1/predict" in refusal(classes.ask(method, path), status)
