"""Upload to the Hugging Face Hub: the model folder that training wrote, with its card completed."""

import re
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from charlm.checked import Count, read, refuse_links
from charlm.config.parse import read_run_config
from charlm.errors import CharlmError, UsageError
from charlm.files import replace
from charlm.model.char_lm import CharLM
from charlm.model.pretrained import ABOUT, FILES
from charlm.sharing.model_card import model_card

CARD = "README.md"
REFUSALS = {
    401: "the token is not valid",
    403: "the token has no right to write there",
    404: "not found, or the token has no right to see it",
}


def ready(run: str | Path, name: str, license: str | None = None, language: list[str] = ()) -> Path:
    """The model/ folder of a run, or a model folder itself, its card completed for the Hub.

    license, language: for the head of the card, as the Hub names them (mit, apache-2.0; en, de); what is not
    given stays. Raises CharlmError when there is no model or it cannot be loaded, UsageError for a bad name.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{name}: not a name on the Hub: {str(error).splitlines()[0]}") from None
    if name.count("/") != 1:
        raise UsageError(f"{name}: name the owner too, as in user/{name}")
    folder = Path(run)
    if not folder.is_dir():
        raise CharlmError(f"{folder}: no such run directory or model folder")
    if not (folder / "config.json").exists():
        folder /= "model"
        if not (folder / "config.json").exists():
            raise CharlmError(f"{run}: holds no model yet; training writes model/ when it evaluates and ends")
        refuse_links(run, "model")
    refuse_links(folder)
    model = CharLM.from_pretrained(folder)  # what cannot be loaded is not sent
    card = folder / CARD
    if not card.exists():
        has_run = folder.name == "model" and (folder.parent / "config.yaml").exists()
        config = read_run_config(folder.parent) if has_run else None
        about = read(folder / "config.json", ABOUT)
        figures = {"validation": about.get("validation")}
        status = folder.parent / "status.json"
        ended = read(status, {"steps?": (Count, None)}) if has_run and status.exists() else {}
        text = model_card(model, model.vocab, config, None, figures, about.get("step"), ended.get("steps"))
        replace(card, text)

    def completed(text: str) -> str:
        content = ModelCard(text, ignore_metadata_errors=True)
        content.data.license = license or content.data.license
        given = language[0] if len(language) == 1 else list(language)
        content.data.language = given or content.data.language
        return re.sub(r'(trained = charlm\.load)\("[^"\n]*"\)', rf'\1("{name}")', str(content))

    replace(card, read(card, str, "cannot be sent (mend it, or delete it for a new one)", completed))
    return folder


def upload(folder: Path, name: str, private: bool = False, message: str | None = None) -> str:
    """Send the files of a model to the Hub in one commit; returns its URL. Nothing else contacts the Hub.
    Raises CharlmError when there is no token, no right to write, or no network."""
    if get_token() is None:
        raise CharlmError("no token of the Hugging Face Hub: `hf auth login` stores one, or set HF_TOKEN")
    api = HfApi(library_name="charlm")
    try:
        api.create_repo(name, private=private or None, exist_ok=True)
        options = {"repo_id": name, "folder_path": folder, "allow_patterns": [CARD, *FILES]}
        commit = api.upload_folder(**options, commit_message=message or "Model trained with charlm")
    except HfHubHTTPError as error:
        status = error.response.status_code
        message = " ".join((error.server_message or str(error)).split())
        reason = REFUSALS.get(status, "refused by the Hub")
        raise CharlmError(f"{name}: {reason} ({status}: {message})") from error
    except Exception as error:  # of the HTTP library that huggingface_hub uses: no network, a timeout
        raise CharlmError(f"{name}: was not sent: {type(error).__name__}: {error}") from error
    return str(commit.commit_url)
