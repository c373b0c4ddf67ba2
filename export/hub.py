"""A network as a repository on the Hugging Face Hub: weights, timm's configuration, ONNX, a card; never engines.

One commit holds everything, so that a cut-off upload leaves the repository as it was. The same network gives the same
files to the byte, and so publishing it twice changes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import timm
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from bossnet_zoo import console
from bossnet_zoo.checkpoint import is_leftover, make_folder, remove_leftovers, save_text
from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.models.weights import LOCAL_WEIGHTS
from bossnet_zoo.runs import CONFIG, class_names_of, is_run, load_run, resolve_model, save_local

from .cards import OnnxFile, published, published_card, render, run_card
from .onnx import export_onnx

README = "README.md"
ONNX_FOLDER = "onnx"


@dataclass(frozen=True)
class Publication:
    """What was, or would be, published.

    Attributes:
        folder: where the files were written.
        files: their paths in the repository.
        url: of the commit; None in a dry run.
    """

    folder: Path
    files: tuple[str, ...]
    url: str | None = None


def check_repo(repo: str) -> str:
    """`repo` itself. Raises `UsageError` unless it has the form ORG/NAME."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"--repo {repo!r} is no name of a repository: {error}") from None
    if "/" not in repo:
        raise UsageError(f"--repo {repo!r} has no owner; write ORG/NAME, for instance my-team/bossnet-flowers")
    return repo


def write_repository(
    source: str, repo: str, folder: Path, *, weights: str = "best", onnx: bool = False, license: str = "unknown"
) -> Publication:
    """Write the files of a repository into a folder.

    Args:
        source: the folder of a training run, or the name of a published model.
        repo: ORG/NAME, for the card's examples.
        folder: where to write; other files in it are left alone, and not published.
        weights: which of a run's: `best`, `model` or `ema`.
        onnx: add the network as ONNX.
        license: of a run's weights, in the Hub's spelling.

    Raises:
        UsageError: a wrong name, or neither a run nor a published model.
        CheckpointError: weights that cannot be read.
        ExportError: an ONNX file that does not compute what PyTorch does.
    """
    check_repo(repo)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise UsageError(f"--license {license!r} is no name of a licence; the Hub spells them as in apache-2.0 or mit")
    name = repo.partition("/")[2]
    if is_run(source):
        model, config = load_run(source, weights)
        arguments = resolve_model(config["model"], config["model_options"])[1]
    elif source in published():
        for option, given in (("--weights", weights != "best"), ("--license", license != "unknown")):
            if given:
                raise UsageError(
                    f"{option} is for the weights of a run; those of {source} are the authors' release, as it is; "
                    f"leave out {option}"
                )
        model, config, arguments = timm.create_model(source, pretrained=True).eval(), {}, {}
    else:
        raise UsageError(
            f"{source!r} is neither the folder of a training run nor a published model ({', '.join(published())}); "
            "train one with: bossnet train MODEL --data DATA --out RUN"
        )
    make_folder(folder)
    remove_leftovers(folder)
    exported: tuple[OnnxFile, ...] = ()
    if onnx:
        path = f"{ONNX_FOLDER}/{name}.onnx"
        exported = (OnnxFile.of(path, export_onnx(model, folder / path, class_names=class_names_of(model))),)
    card = (
        run_card(Path(source), model, config, weights, repo=repo, license=license, onnx_files=exported)
        if config
        else published_card(source, repo, exported)
    )
    save_local(folder, model, arguments, class_names_of(model))
    save_text(folder / README, render(card))
    files = (CONFIG, LOCAL_WEIGHTS, README, *(file.path for file in exported))
    there = (file for file in sorted(folder.rglob("*")) if file.is_file() and not is_leftover(file))
    own = {*files, *(f"{file.path}.json" for file in exported)}
    if others := [file for file in there if file.relative_to(folder).as_posix() not in own]:
        console.note(f"not part of it, though it lies in {folder} too: {', '.join(str(file) for file in others[:3])}")
    return Publication(folder, files)


def upload(publication: Publication, repo: str, *, private: bool = False, endpoint: str | None = None) -> Publication:
    """Send the files to the Hub in one commit; the same files again make none.

    ONNX files of an earlier publication that this one does not have are removed: they are of other weights, perhaps.

    Args:
        publication: from `write_repository`.
        repo: ORG/NAME; it is created where it does not exist.
        private: visible to its owner alone, when it is created; one that is there must be so already.
        endpoint: of the Hub; by default the public one, or $HF_ENDPOINT.

    Raises:
        UsageError: not logged in, or a repository that all can see where a private one was asked for.
        BossNetError: the upload failed; the repository is as it was.
    """
    if get_token() is None:
        raise UsageError("publishing needs a token of the Hub: type hf auth login, or set HF_TOKEN")
    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UsageError(f"{repo} is there already, and public; make it private on the Hub, or leave out --private")
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=publication.folder,
            allow_patterns=list(publication.files),
            delete_patterns=f"{ONNX_FOLDER}/*.onnx",
            commit_message="Publish with bossnet-zoo",
        )
    except BossNetError:
        raise
    except Exception as error:  # every major version of huggingface_hub has another HTTP library's exceptions
        reason = str(error).strip().splitlines()[0]
        status = getattr(getattr(error, "response", None), "status_code", None)
        remedies = {
            401: "the Hub does not know this token; type hf auth login",
            403: f"this token may not write to {repo}; type hf auth login with one that may",
        }
        remedy = remedies.get(status or 0, f"type the command again, or upload {publication.folder} by hand")
        raise BossNetError(f"publishing to {repo} failed: {reason}; the repository is as it was; {remedy}") from error
    return Publication(publication.folder, publication.files, commit.commit_url)
