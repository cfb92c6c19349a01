"""A local web page for a network: drop slices, move the threshold, download masks (extra `[app]`: Gradio).

Nothing is kept: uploaded files are deleted as soon as they are read, pictures and masks travel inside messages, and what is
in memory goes when the page has been closed for an hour or the server ends. Nothing is sent to the net either: Gradio's
analytics are off, and a content security policy forbids the page any other server.
"""

from __future__ import annotations

import base64
import contextlib
import html
import importlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kerasseg.export.schema import read_metadata
from kerasseg.postprocessing import MaskRule, rule_in_words
from kerasseg.prediction.predictor import Network, open_network
from kerasseg.prediction.viewer import Case, Opened, View, download, open_cases
from kerasseg_tfrecords.errors import KerassegError, UsageError, one_line
from kerasseg_tfrecords.text import count

MAX_FILES = 1000
"""Files that may be dropped at once; a DICOM series has one per slice."""

_FIRST_PORT = 7860
_KEPT_SECONDS = 3600
_SESSIONS = 16
_LOOPBACK = ("127.0.0.1", "localhost")
_STEP = 0.001
_CLINICAL = "For research. Not for clinical use."


@dataclass(frozen=True, slots=True, eq=False)
class Server:
    """A running page.

    Attributes:
        url: Its address.
        temporary: Folder of uploads while they are being read.
    """

    url: str
    temporary: Path


@contextlib.contextmanager
def serve(
    network: Network, *, name: str = "", host: str = "127.0.0.1", port: int | None = None, max_upload_mb: int = 200
) -> Iterator[Server]:
    """Serve the page while the block runs.

    Args:
        network: Network from `open_network`.
        name: Name shown on the page; "" for that of the network.
        host: Address to listen on; the default is reachable from this machine only.
        port: Port; None for the first free one from 7860.
        max_upload_mb: Largest uploaded file in megabytes.

    Raises:
        UsageError: Gradio is not installed, or the port is in use.
    """
    gradio = _gradio()
    if max_upload_mb < 1:
        raise UsageError("invalid upload limit", found=max_upload_mb, expected="at least 1 MB")
    with tempfile.TemporaryDirectory(prefix="kerasseg-app-") as temporary, _environment(GRADIO_TEMP_DIR=temporary):
        page = build_page(network, name=name)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                max_file_size=max_upload_mb * 1_000_000,
                app_kwargs={"middleware": _middleware(host)},
                prevent_thread_lock=True,
                **_options(gradio),
            )
        except OSError as error:
            raise UsageError(
                "the page cannot be served",
                found=one_line(str(error)),
                expected=f"a free port from {_FIRST_PORT}" if port is None else f"port {port} of {host} to be free",
                remedy="Choose another --port, or check --host.",
            ) from error
        try:
            yield Server(url, Path(temporary))
        finally:
            page.close(verbose=False)


def open_export(folder: Path | str) -> Network:
    """Open the network of an export (`kerasseg export --format app` or `keras`) with its rule.

    Raises:
        DataError: The export is missing or damaged.
        CheckpointError: Its network cannot be opened.
    """
    metadata = read_metadata(folder)
    intensity: Any = metadata.preprocessing.intensity
    return open_network(Path(folder) / "model.keras", rule=metadata.mask.rule, intensity=intensity)


def launch_space(folder: Path | str) -> None:
    """Serve the page of an exported Space until it is stopped, and print its address; host and port are Gradio's."""
    gradio = _gradio()
    page = build_page(open_export(folder), name=read_metadata(folder).name)
    _, url, _ = page.launch(max_file_size="200mb", prevent_thread_lock=True, **_options(gradio))
    print(f"{url}  (Ctrl-C ends it)", flush=True)  # noqa: T201 - app.py is a program
    page.block_thread()


def build_page(network: Network, *, name: str = "") -> Any:
    """Build the page as `gradio.Blocks`.

    Args:
        network: Network from `open_network`.
        name: Name shown on the page; "" for that of the network.

    Raises:
        UsageError: Gradio is not installed.
    """
    gr = _gradio()
    lock = threading.Lock()  # one prediction at a time
    tuned = network.rule
    shown = one_line(name or ", ".join(Path(one).name for one in network.names))

    def rule_at(threshold: float, postprocess: bool) -> MaskRule:
        base = tuned if postprocess else tuned.without_postprocessing()
        same = abs(threshold - tuned.threshold) < _STEP
        return base.model_copy(update={"threshold": tuned.threshold if same else threshold, "class_thresholds": {}})

    def dropped(paths: Sequence[str] | None, threshold: float, postprocess: bool) -> tuple[Any, ...]:
        with _collected(paths or ()) as folder, lock:
            try:
                if len(paths or ()) > MAX_FILES:
                    raise UsageError("too many files at once", found=len(paths or ()), expected=f"at most {MAX_FILES}")
                opened = open_cases(folder, network)
            except KerassegError as error:
                raise gr.Error(html.escape(_without_folder(str(error), folder), quote=False), duration=20) from None
        names = [case.name for case in opened.cases]
        choice = gr.Dropdown(choices=list(zip(names, range(len(names)), strict=True)), value=0 if names else None)
        several = gr.update(visible=len(names) > 1)
        some = gr.update(visible=bool(names))
        case_shown = chosen(opened, 0, threshold, postprocess)
        return None, opened, choice, several, some, _remarks(opened, network), *case_shown

    def chosen(opened: Opened | None, number: int | None, threshold: float, postprocess: bool) -> tuple[Any, Any, Any]:
        """The slice slider, whether it is shown, and the pictures, after another case was chosen."""
        if opened is None or number is None or not opened.cases:
            return gr.Slider(value=1), gr.update(visible=False), _EMPTY
        case = opened.cases[number]
        slider = gr.Slider(value=case.middle + 1, minimum=1, maximum=max(2, len(case)))
        view = case.view(case.middle, rule_at(threshold, postprocess))
        return slider, gr.update(visible=len(case) > 1), _pictures(case, view, case.middle)

    def moved(opened: Opened | None, number: int | None, place: float, threshold: float, postprocess: bool) -> Any:
        if opened is None or number is None or not opened.cases:
            return _EMPTY
        case = opened.cases[number]
        index = min(max(int(place) - 1, 0), len(case) - 1)
        return _pictures(case, case.view(index, rule_at(threshold, postprocess)), index)

    def downloaded(opened: Opened | None, threshold: float, postprocess: bool) -> list[str]:
        if opened is None or not opened.cases:
            raise gr.Error("There are no masks yet: drop slices first.", duration=10)
        file, data = download(opened.cases, rule_at(threshold, postprocess))
        return [file, base64.b64encode(data).decode()]

    with gr.Blocks(
        title=f"kerasseg: {shown}", analytics_enabled=False, delete_cache=(600, 600), fill_width=True
    ) as page:
        state = gr.State(time_to_live=_KEPT_SECONDS)
        gr.HTML(
            f"<h1>{html.escape(shown)}</h1><p>Drop MRI slices to see where the network finds a tumour. "
            f"<strong>{_CLINICAL}</strong></p>",
            elem_id="head",
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                files = gr.File(
                    label="PNG, MAT, NIfTI or DICOM files", file_count="multiple", height=150, elem_id="drop"
                )
                with gr.Group(visible=False) as cases:
                    case = gr.Dropdown(label="File", choices=[], type="value", elem_id="case")
                with gr.Group(visible=False) as slices:
                    place = gr.Slider(1, 2, value=1, step=1, precision=0, label="Slice", elem_id="place")
                threshold = gr.Slider(
                    min(0.01, round(tuned.threshold, 3)),
                    1,
                    value=round(tuned.threshold, 3),
                    step=_STEP,
                    label="Threshold",
                    info=f"This network uses {tuned.threshold:.3g}.",
                    elem_id="threshold",
                )
                postprocess = gr.Checkbox(
                    True,
                    label="Post-processing",
                    info=rule_in_words(tuned).partition(", ")[2].capitalize() or None,
                    visible=tuned.postprocesses,
                    elem_id="postprocess",
                )
            with gr.Column(scale=3, min_width=300):
                pictures = gr.HTML(_EMPTY, elem_id="pictures")
                button = gr.Button("Download masks", variant="primary", elem_id="download", visible=False)
                remarks = gr.HTML("", elem_id="remarks")
                gr.HTML(
                    f'<p class="facts">The network computes in {network.precision} on {network.size} x {network.size} '
                    f"pixels, intensity rule {network.intensity}.</p>"
                )
        carrier = gr.JSON(visible=False)
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        files.upload(
            dropped,
            [files, threshold, postprocess],
            [files, state, case, cases, button, remarks, place, slices, pictures],
            show_progress_on=pictures,
            api_visibility="private",
        ).then(None, js="() => window.scrollTo(0, 0)")
        case.input(chosen, [state, case, threshold, postprocess], [place, slices, pictures], **quiet)
        gr.on(
            [place.input, threshold.input, place.release, threshold.release, postprocess.input],
            moved,
            [state, case, place, threshold, postprocess],
            pictures,
            trigger_mode="always_last",
            **quiet,
        )
        button.click(downloaded, [state, threshold, postprocess], carrier, **quiet).success(
            None, carrier, carrier, js=_SAVE
        )
    return page


# --- what the page shows ---------------------------------------------------------------------------------------------

_EMPTY = (
    '<div class="empty">The image, the probability map and the mask appear here. '
    "Files stay on the computer that runs this page and are deleted once they are read.</div>"
)

_SAVE = """([name, data]) => {
  const link = document.createElement('a');
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  link.href = URL.createObjectURL(new Blob([bytes]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  return null;
}"""

_STYLE = """
.gradio-container { max-width: 1500px !important; margin: 0 auto !important; }
#head h1 { font-size: 1.35rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
#head p { margin: .2rem 0 0; }
.empty { border: 1px dashed var(--border-color-primary); border-radius: 8px; padding: 4rem 1.5rem; text-align: center;
  color: var(--body-text-color-subdued); }
.figures { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: 0 0 .8rem; }
.figures div { display: flex; flex-direction: column-reverse; }
.figures dt { font-size: .8rem; color: var(--body-text-color-subdued); }
.figures dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.trio { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .8rem; }
.trio figure { margin: 0; }
.trio img { width: 100%; max-height: 70vh; object-fit: fill; display: block; background: #000; border-radius: 4px; }
.trio figcaption { font-size: .85rem; color: var(--body-text-color-subdued); padding-top: .3rem; }
.scale { display: inline-block; width: 4rem; height: .6rem; margin: 0 .25rem; border-radius: 2px;
  background: linear-gradient(90deg, #440154, #3b528b, #21918c, #5ec962, #fde725); }
.trio figcaption { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.facts { font-size: .85rem; color: var(--body-text-color-subdued); }
#download { align-self: flex-start; width: auto; margin-left: 12px; }  /* the pictures' inner margin */
.file { overflow-wrap: anywhere; margin: 0 0 .5rem; }
#remarks ul { margin: 0; padding-left: 1.2rem; font-size: .9rem; }
@media (max-width: 700px) {
  .trio { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .trio figure:first-child { grid-column: 1 / -1; }
  .scale { width: 2.5rem; }
  .figures { gap: .4rem 1.2rem; }
  .figures dd { font-size: 1.15rem; }
}
"""


def _pictures(case: Case, view: View, place: int) -> str:
    row = view.row
    figures = []
    if row.area_mm2 is None:
        figures.append(("Area", f"{row.area_px:,} pixels"))
    else:
        figures.append(("Area in this slice" if len(case) > 1 else "Area", f"{row.area_mm2:,.1f} mm²"))
    if row.case_volume_ml is not None:
        figures.append(("Volume", f"{row.case_volume_ml:,.2f} ml"))
    figures.append(("Tumours", f"{row.case_tumours or 0:,}"))
    where = f"{case.name}, slice {place + 1} of {len(case)}" if len(case) > 1 else case.name
    outlined = "Mask" if row.area_px else "Mask: no tumour at this threshold"
    trio = (
        (view.mask, outlined, "slice with the outline of the mask"),
        (view.image, "Image", "slice"),
        (view.probability, 'Probability 0<span class="scale"></span>1', "probability map"),
    )
    values = "".join(f"<div><dt>{what}</dt><dd>{value}</dd></div>" for what, value in figures)
    shown = "".join(
        f'<figure><img src="data:image/png;base64,{base64.b64encode(data).decode()}" alt="{html.escape(where)}: {what}" '
        f'style="aspect-ratio: {view.aspect:.4f}"><figcaption>{caption}</figcaption></figure>'
        for data, caption, what in trio
    )
    return (
        f'<p class="file">{html.escape(one_line(where))}</p><dl class="figures">{values}</dl>'
        f'<div class="trio">{shown}</div>'
    )


def _remarks(opened: Opened, network: Network) -> str:
    lines = [f"Cannot be read: {problem}" for problem in opened.problems]
    lines += [f"{case.name}: {note}" for case in opened.cases for note in case.notes]
    lines += [*opened.notes, *network.notes]
    if opened.left_out:
        first, more = opened.left_out[0], len(opened.left_out) - 1
        lines.append(f"Not an image: {first}" + (f" and {count(more, 'other file')}" if more else ""))
    if not lines:
        return ""
    return "<ul>" + "".join(f"<li>{html.escape(one_line(line))}</li>" for line in lines) + "</ul>"


# --- the server ------------------------------------------------------------------------------------------------------


def check_gradio() -> None:
    """Check that Gradio is installed.

    Raises:
        UsageError: It is not; the message says how to install it.
    """
    _gradio()


def _gradio() -> Any:
    """Import Gradio with its analytics off."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise UsageError(
            "the page needs Gradio",
            found="not installed" if error.name == "gradio" else one_line(str(error)),
            remedy='Install the extra: pip install "kerasseg[app]"',
        ) from error


def _options(gradio: Any) -> dict[str, Any]:
    """Options of `launch` that are the same everywhere."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {
        # Gradio's own grey is hard to read on white.
        "theme": gradio.themes.Default(primary_hue="blue", neutral_hue="slate", **fonts).set(
            body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500"
        ),
        "css": _STYLE,
        "share": False,
        "quiet": True,
        "footer_links": [],
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "state_session_capacity": _SESSIONS,
    }


def _middleware(host: str) -> list[Any]:
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    kinds = [Middleware(_OnlyThisServer)]
    if host in _LOOPBACK:  # a name that another site points at this machine is refused
        kinds.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(_LOOPBACK)))
    return kinds


class _OnlyThisServer:
    """ASGI middleware: the page may load nothing from and send nothing to other servers."""

    _POLICY = (
        b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'; form-action 'self'; "
        b"object-src 'none'"
    )

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"content-security-policy", self._POLICY)]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, sent)


@contextlib.contextmanager
def _collected(paths: Sequence[str]) -> Iterator[Path]:
    """Move uploaded files into one folder, which is removed after the block."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("GRADIO_TEMP_DIR")) as temporary:
        folder = Path(temporary) / "slices"
        folder.mkdir()
        for number, path in enumerate(map(Path, paths)):
            target = folder / path.name
            if target.exists():  # two folders with files of one name
                target = folder / str(number) / path.name
                target.parent.mkdir()
            with contextlib.suppress(FileNotFoundError):  # dropped twice at once
                shutil.move(path, target)
            with contextlib.suppress(OSError):
                path.parent.rmdir()
        yield folder


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _without_folder(text: str, folder: Path) -> str:
    return text.replace(f"{folder}/", "").replace(str(folder), "the dropped files")
