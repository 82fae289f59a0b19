"""Jobs of volumes over HTTP: what is answered, that files are the command line's, that planes lie as patients do."""

from __future__ import annotations

import asyncio
import gzip
import io
import json

import cv2
import nibabel
import numpy as np
import pytest
import stub_engine
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from serving_volumes import AFFINE, SHAPE, VolumeServer, bright, case_bytes, open_volumes, stub_volumes, written
from volume_files import affine

from segship.cli import run
from segship.errors import InputError
from segship.inference.predictor import Predictor
from segship.manifest import PreviousStage, PreviousStageChannels
from segship.serve.options import VolumeServeOptions
from segship.serve.volume_service import VolumeService

CASE = case_bytes(1)


@pytest.fixture(scope="module")
def stub():
    with pytest.MonkeyPatch.context() as patch:
        stub_engine.install(patch, bright)
        yield patch


@pytest.fixture(scope="module")
def server(stub, tmp_path_factory):
    with open_volumes(tmp_path_factory.mktemp("serve") / "net") as predictor, VolumeServer(predictor) as server:
        yield server


@pytest.fixture(scope="module")
def two(stub, tmp_path_factory):
    """A server of a package of two channels."""
    with (
        open_volumes(tmp_path_factory.mktemp("serve") / "two", channels=2) as predictor,
        VolumeServer(predictor) as server,
    ):
        yield server


def refusal(answer, status):
    assert answer.status_code == status, answer.text
    said = answer.json()
    assert set(said) == {"error", "hint"}
    assert said["error"]
    assert said["hint"]
    text = f"{said['error']}; {said['hint']}"
    assert "\n" not in text
    assert "/tmp" not in text
    return text


def predicted(predictor, folder, **files):
    """The files that `segship predict` writes for one case, by their ending."""
    (folder / "in").mkdir(parents=True)
    for name, data in files.items():
        (folder / "in" / f"{name}.nii.gz").write_bytes(data)
    words = ["predict", str(predictor.package.path), "-i", str(folder / "in"), "-o", str(folder / "out"), "-q"]
    assert run([*words, "--engine", stub_engine.NAME, "--save_probabilities", "--preview"]) == 0
    return {path.relative_to(folder / "out").as_posix(): path.read_bytes() for path in (folder / "out").rglob("*.*")}


# ------------------------------------------------------------------------------------------------ one job


def test_a_job_from_submission_to_deletion(server):
    answer = server.ask("POST", "/v1/jobs", files={"file": ("liver 3_0000.nii.gz", CASE)})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert len(job["id"]) == 32
    assert job["case"] == "liver_3"
    assert job["shape"] == [9, 12, 14]
    # 4 x 5 x 6 windows of 4 x 4 x 4 at steps of 2, four mirrorings each
    assert job["windows"]["total"] == 480
    assert job["memory_bytes"] > server.service.bounds.base
    done = server.until(job, "done")
    assert done["windows"] == {"done": 480, "total": 480}
    assert done["position"] is None
    assert done["error"] is None
    assert 0 < done["expires_in_seconds"] <= 3600
    assert done["file_name"] == "liver_3.nii.gz"
    assert job["id"] in [one["id"] for one in server.ask("GET", "/v1/jobs").json()["jobs"]]
    labels = server.ask("GET", done["links"]["labels"])
    assert labels.headers["content-type"] == "application/gzip"
    assert labels.headers["content-disposition"] == 'attachment; filename="liver_3.nii.gz"'
    assert labels.headers["segship-package"] == server.service.sha256
    found = written(labels.content)
    assert found.shape == SHAPE
    assert [(one["id"], one["name"], one["voxels"]) for one in done["labels"]] == [
        (1, "organ", int((found == 1).sum()))
    ]
    assert done["labels"][0]["millilitres"] == pytest.approx((found == 1).sum() * 1.2 * 1.5 * 2 / 1000, abs=1e-3)
    assert (found == 1).any()
    gone = server.ask("DELETE", done["links"]["self"]).json()
    assert gone == {"id": job["id"], "deleted": True, "was": "done"}
    for link in (*done["links"].values(), f"{done['links']['planes']}/axial/0"):
        refusal(server.ask("GET", link), 404)
    refusal(server.ask("DELETE", done["links"]["self"]), 404)


def test_every_file_is_the_one_that_predict_writes(server, tmp_path):
    files = predicted(server.predictor, tmp_path, ct_0000=CASE)
    job = server.done(("ct_0000.nii.gz", CASE), probabilities="true")
    for link, name in (("labels", "ct.nii.gz"), ("probabilities", "ct.npz"), ("preview", "previews/ct.png")):
        assert server.ask("GET", job["links"][link]).content == files[name], name


def test_two_channels_are_told_apart_by_their_numbers(two, tmp_path):
    ct, pet = case_bytes(3), case_bytes(4)
    files = predicted(two.predictor, tmp_path, a_0000=ct, a_0001=pet)
    for order in ([0, 1], [1, 0]):
        sent = [("a_0000.nii.gz", ct), ("a_0001.nii.gz", pet)]
        job = two.done(*(sent[i] for i in order))
        assert two.ask("GET", job["links"]["labels"]).content == files["a.nii.gz"]
        assert job["files"] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_fields_change_what_they_say(server):
    plain = server.submit(("a.nii.gz", CASE))
    quick = server.submit(("a.nii.gz", CASE), disable_tta="true", step_size="1", folds="model", name="b")
    assert quick["windows"]["total"] == 3 * 3 * 4
    assert quick["case"] == "b"
    assert quick["options"] == {"disable_tta": True, "step_size": 1.0, "folds": ["model"], "probabilities": False}
    assert plain["options"]["folds"] is None
    for job in (plain, quick):
        done = server.until(job, "done")
        assert "probabilities" not in done["links"]
        assert "kept no probabilities" in refusal(server.ask("GET", f"{done['links']['self']}/probabilities"), 404)


def test_the_file_can_be_the_whole_body(server):
    form = server.done(("a.nii.gz", CASE))
    raw = server.ask("POST", "/v1/jobs", params={"name": "a.nii.gz"}, content=CASE)
    plain = server.ask("POST", "/v1/jobs", content=gzip.decompress(CASE), headers={"content-type": "application/gzip"})
    for answer, case in ((raw, "a"), (plain, "case")):
        assert answer.status_code == 202, answer.text
        job = server.until(answer.json(), "done")
        assert job["case"] == case
        assert server.ask("GET", job["links"]["labels"]).content == server.ask("GET", form["links"]["labels"]).content


def test_waiting_for_the_end_takes_one_request(server):
    async def both(client):
        job = (await client.post("/v1/jobs", files={"file": ("a.nii.gz", CASE)})).json()
        return (await client.get(job["links"]["self"], params={"wait": 20})).json()

    assert server.run(both)["status"] == "done"


def test_a_case_that_turns_out_broken_fails_with_a_line_and_the_next_one_works(server):
    values = np.zeros(SHAPE, np.float32)
    values[3, 4, 5] = np.nan
    job = server.submit(("broken_0000.nii.gz", gzip.compress(nibabel.Nifti1Image(values, AFFINE).to_bytes())))
    failed = server.until(job, "failed")
    assert failed["error"] == "broken holds 1 NaN or infinite values, the first at (channel, z, y, x) = (0, 5, 4, 3)"
    assert failed["hint"] == "replace them first"
    said = refusal(server.ask("GET", f"{failed['links']['self']}/labels"), 409)
    assert said.startswith("this job failed: broken holds 1 NaN")
    assert server.done(("a.nii.gz", CASE))


def test_names_of_files_never_become_paths(server):
    job = server.done(("../../etc/pass wd;.nii.gz", CASE))
    assert job["case"] == "pass_wd_"
    name = server.ask("GET", job["links"]["labels"]).headers["content-disposition"]
    assert name == 'attachment; filename="pass_wd_.nii.gz"'


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("files", "fields", "says"),
    [
        ([("a.nii.gz", CASE), ("b.nii.gz", CASE)], {}, "has 1 file, and the form has more"),
        ([("a_0001.nii.gz", CASE)], {}, "a_0001.nii.gz is one channel too many; send one file with CT"),
        ([("a.nii.gz", b"")], {}, "a.nii.gz is empty: 0 bytes arrived"),
        ([("a.nii.gz", CASE)], {"folds": "3"}, "the package has no fold '3'; it has: model"),
        ([("a.nii.gz", CASE)], {"step_size": "2"}, "field 'step_size' is '2'"),
        ([("a.nii.gz", CASE)], {"tta": "1"}, "there is no field 'tta' here"),
        ([], {"folds": "0"}, "is not read here"),
    ],
)
def test_forms_that_do_not_fit(server, files, fields, says):
    answer = server.ask("POST", "/v1/jobs", files=[("file", one) for one in files], data=fields)
    assert says in refusal(answer, 415 if not files else 400)
    assert server.service.jobs.taken == 0


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([("a_0000.nii.gz", CASE)], "1 file came, and a case of this package has 2; send CASE_0000.nii.gz (CT)"),
        ([("a.nii.gz", CASE), ("b.nii.gz", CASE)], "a.nii.gz has no channel number"),
        ([("a_0000.nii.gz", CASE), ("b_0001.nii.gz", CASE)], "the files belong to two cases, a and b"),
        ([("a_0000.nii.gz", CASE), ("a_0000.nii.gz", CASE)], "two files are channel 0000"),
        ([("a_0000.nii.gz", CASE), ("a_0002.nii.gz", CASE)], "a_0002.nii.gz is one channel too many"),
    ],
)
def test_channels_that_are_missing_or_too_many(two, files, says):
    before = two.service.space.total
    assert says in refusal(two.ask("POST", "/v1/jobs", files=[("file", one) for one in files]), 400)
    assert two.service.space.total == before


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("cut.nii.gz", CASE[:-40], "cut.nii.gz cannot be unpacked"),
        ("cut.nii", gzip.decompress(CASE)[:-9], "cut.nii cannot be unpacked (its header declares"),
        ("bad.nii.gz", CASE[:-5] + b"12345", "bad.nii.gz cannot be unpacked"),
        ("text.nii.gz", b"no volume at all", "text.nii.gz is no NIfTI file: its first bytes are no header"),
        ("zip.nii.gz", gzip.compress(b"x" * 4000), "zip.nii.gz is no NIfTI file"),
        ("four.nii.gz", case_bytes(1, (*SHAPE, 2)), "four.nii.gz: the case has 2 channels, the network takes 1: CT"),
    ],
)
def test_damaged_files_are_one_line_at_once(server, name, data, says):
    assert says in refusal(server.ask("POST", "/v1/jobs", files={"file": (name, data)}), 422)
    assert server.service.jobs.taken == 0


def test_spacing_that_cannot_be(server):
    data = bytearray(gzip.decompress(CASE))
    header = nibabel.Nifti1Header(bytes(data[:348]), check=False)
    header["pixdim"][2] = np.nan
    data[:348] = header.binaryblock
    answer = server.ask("POST", "/v1/jobs", files={"file": ("a.nii", bytes(data))})
    assert "must be positive, correct the file's header" in refusal(answer, 422)


def test_grids_that_differ_are_seen_before_the_queue(two):
    files = [("file", ("a_0000.nii.gz", CASE)), ("file", ("a_0001.nii.gz", case_bytes(1, (9, 9, 9))))]
    assert "the channels of a case lie on one grid" in refusal(two.ask("POST", "/v1/jobs", files=files), 422)


def test_predict_says_where_volumes_go(server):
    said = refusal(server.ask("POST", "/v1/predict", files={"file": ("a.nii.gz", CASE)}), 404)
    assert "POST /v1/jobs" in said


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/v1/jobs/00", "there is no such job"),
        ("/v1/jobs/00/labels", "there is no such job"),
        ("/v1/jobs/..%2f..%2fetc/labels", ""),
        ("/v2", "POST and GET /v1/jobs"),
    ],
)
def test_what_is_not_there_is_said(server, path, says):
    assert says in refusal(server.ask("GET", path), 404)


# ------------------------------------------------------------------------------------------------- planes


def decode(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


@pytest.mark.parametrize("kind", ["plain", "oblique", "flipped", "anisotropic", "odd"])
@pytest.mark.parametrize("reader", ["nibabel", "nibabel-reorient", "nibabel-stored", "simpleitk"])
def test_planes_lie_as_radiologists_look_at_them(stub, tmp_path, reader, kind):
    """Whatever axes a file has: right on the left, front above; head above; front on the left."""
    there = AFFINE if kind == "odd" else affine(kind)
    recipe = stub_volumes(tmp_path / "first").manifest
    spec = recipe.input.model_copy(update={"reader": reader})
    with open_volumes(tmp_path / "net", input=spec) as predictor, VolumeServer(predictor) as server:
        job = server.done(("a.nii.gz", case_bytes(1, affine=there)))
        labels = written(server.ask("GET", job["links"]["labels"]).content)
        values = np.asarray(nibabel.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(case_bytes(1)))).dataobj)
        turn = ornt_transform(io_orientation(there), axcodes2ornt(("L", "P", "S")))
        labels, values = apply_orientation(labels, turn), apply_orientation(values, turn)
        spacing = nibabel.affines.voxel_sizes(there)
        spacing = [float(spacing[list(turn[:, 0]).index(axis)]) for axis in range(3)]
        expected = {
            "axial": (labels.transpose(2, 1, 0), values.transpose(2, 1, 0), (0, 1, 2), "RLAP"),
            "coronal": (labels.transpose(1, 2, 0)[:, ::-1], values.transpose(1, 2, 0)[:, ::-1], (0, 2, 1), "RLSI"),
            "sagittal": (labels.transpose(0, 2, 1)[:, ::-1], values.transpose(0, 2, 1)[:, ::-1], (1, 2, 0), "APSI"),
        }
        for name, (stack, grey, axes, edges) in expected.items():
            about = job["planes"][name]
            assert (about["slices"], about["height"], about["width"]) == stack.shape
            assert about["edges"] == edges
            assert np.allclose([*about["pixel_mm"], about["slice_mm"]], [spacing[axis] for axis in axes], atol=1e-5)
            assert about["start"] == (stack != 0).sum(axis=(1, 2)).argmax()
            for index in {0, about["start"], about["slices"] - 1}:
                shown = decode(server.ask("GET", f"{job['links']['planes']}/{name}/{index}").content)
                np.testing.assert_array_equal(shown[..., 1], stack[index])
                order = np.argsort(grey[index], axis=None)
                assert (np.diff(shown[..., 0].reshape(-1)[order].astype(int)) >= 0).all()  # brighter stays brighter
                assert not shown[..., 2].any()


def test_a_second_channel_can_be_looked_at(two):
    files = [("a_0000.nii.gz", case_bytes(3)), ("a_0001.nii.gz", case_bytes(4))]
    job = two.done(*files)
    at = f"{job['links']['planes']}/axial/4"
    first, second = (decode(two.ask("GET", at, params={"channel": n}).content) for n in range(2))
    assert (first[..., 0] != second[..., 0]).any()
    np.testing.assert_array_equal(first[..., 1], second[..., 1])
    assert "channels are 0 to 1" in refusal(two.ask("GET", at, params={"channel": 2}), 404)


def test_planes_that_are_not_there(server):
    job = server.done(("a.nii.gz", CASE))
    at = job["links"]["planes"]
    assert "this case has: axial, coronal, sagittal" in refusal(server.ask("GET", f"{at}/oblique/0"), 404)
    for index in ("9", "-1", "x", "9" * 5000):
        assert "axial slices are 0 to 8" in refusal(server.ask("GET", f"{at}/axial/{index}"), 404)


def test_a_single_slice_has_one_plane(server):
    job = server.done(("flat.nii.gz", case_bytes(2, (14, 12, 1))))
    assert list(job["planes"]) == ["axial"]
    assert job["planes"]["axial"]["slices"] == 1


# ------------------------------------------------------------------------------------------- state and counts


def test_the_model_health_and_counts_hold(server):
    about = server.ask("GET", "/v1/model").json()
    assert about["input"]["kind"] == "volume"
    assert about["tiling"]["window"] == [4, 4, 4]
    assert about["limits"]["memory_bytes"] == server.service.bounds.memory
    assert about["outputs"] == ["labels", "preview", "planes", "probabilities"]
    assert server.ask("GET", "/healthz").json() == {"status": "ok"}
    before = counts(server)
    job = server.done(("a.nii.gz", CASE))
    server.ask("GET", job["links"]["labels"])
    refusal(server.ask("GET", "/v1/jobs/no/labels"), 404)
    after = counts(server)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown['segship_jobs_total{result="done"}'] == 1
    assert grown["segship_windows_total"] == 480
    assert grown["segship_work_seconds_count"] == 1
    assert grown['segship_requests_total{method="POST",route="/v1/jobs",status="202"}'] == 1
    assert grown['segship_requests_total{method="GET",route="/v1/jobs/{job}/labels",status="200"}'] == 1
    assert grown['segship_requests_total{method="GET",route="/v1/jobs/{job}/labels",status="404"}'] == 1
    assert not any("other" in name for name in grown if grown[name] and name.startswith("segship_requests_total"))
    assert after["segship_places"] == 17
    assert after["segship_held_bytes"] == server.service.space.total > 0


def counts(server):
    lines = server.ask("GET", "/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_the_routes_are_described(server):
    paths = server.ask("GET", "/openapi.json").json()["paths"]
    assert set(paths) >= {
        "/v1/jobs",
        "/v1/jobs/{job}",
        "/v1/jobs/{job}/labels",
        "/v1/jobs/{job}/planes/{plane}/{index}",
    }
    form = paths["/v1/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"file", "name", "disable_tta", "step_size", "folds", "probabilities"}
    assert json.dumps(paths)


def test_the_page_is_whole(server):
    page = server.ask("GET", "/").text
    assert 'src="volume.js"' in page
    for name in ("page.css", "volume.css", "volume.js", "common.js", "planes.js"):
        answer = server.ask("GET", f"/{name}")
        assert answer.status_code == 200
        assert "http://" not in answer.text.replace("http://www.w3.org", "")
        assert "https://" not in answer.text


def test_jobs_are_listed_to_this_machine_only(stub, tmp_path):
    with open_volumes(tmp_path / "net") as predictor, VolumeServer(predictor, host="0.0.0.0") as server:
        job = server.done(("a.nii.gz", CASE))
        assert "the key to its results" in refusal(server.ask("GET", "/v1/jobs"), 403)
        assert server.ask("GET", job["links"]["labels"]).status_code == 200


def test_an_opened_package_serves_any_number_of_servers(stub, tmp_path):
    with Predictor.open(stub_volumes(tmp_path / "net"), engine=stub_engine.NAME) as predictor:
        for _ in range(2):
            with VolumeServer(predictor) as server:
                assert asyncio.iscoroutinefunction(server.service.jobs.drained)
                assert server.done(("a.nii.gz", CASE))["status"] == "done"


# ------------------------------------------------------------------------------------------------- cascades


def test_a_cascade_runs_both_stages_as_predict_does(tmp_path, monkeypatch):
    """The second stage sees the first one's labels as a channel; its network is told apart by what it is given."""

    def either(x):
        if x.shape[1] == 1:
            return bright(x)
        inside = x[:, 1:2] * x[:, :1] - 180  # what the first stage found, and only its brighter part
        return [np.concatenate([np.zeros_like(inside), inside], axis=1).astype(np.float32)]

    stub_engine.install(monkeypatch, either)
    first = stub_volumes(tmp_path / "first")
    network = first.manifest.network.model_copy(update={"input_channels": 2})
    steps = (PreviousStageChannels(labels=(1,), crop=True),)
    changes = {"network": network, "preprocess": steps, "previous_stage": PreviousStage(file="first")}
    with open_volumes(tmp_path / "second", **changes) as predictor:
        files = predicted(predictor, tmp_path, ct_0000=CASE)
        with VolumeServer(predictor) as server:
            job = server.submit(("ct_0000.nii.gz", CASE))
            assert job["windows"]["total"] == 2 * 480
            done = server.until(job, "done")
            assert done["windows"] == {"done": 960, "total": 960}
            for link, name in (("labels", "ct.nii.gz"), ("preview", "previews/ct.png")):
                assert server.ask("GET", done["links"][link]).content == files[name], name
            found = written(server.ask("GET", done["links"]["labels"]).content)
        assert 0 < (found == 1).sum() < (predictor.previous(tmp_path / "in" / "ct_0000.nii.gz").labels == 1).sum()


def test_a_cascade_without_its_first_stage_says_so_at_the_start(stub, tmp_path):
    changes = {"previous_stage": PreviousStage(file="nowhere.segship")}
    with (
        open_volumes(tmp_path / "second", **changes) as predictor,
        pytest.raises(InputError, match=r"put nowhere\.segship beside it"),
    ):
        VolumeService(predictor, VolumeServeOptions())
