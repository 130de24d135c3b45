"""Commands that use a trained detector: predict, export, push."""

from pathlib import Path
from typing import Annotated

import typer

from qadtrain.cli_common import (
    Checkpoint,
    Device,
    Json,
    Run,
    console_beside,
    end_with,
    interruptible,
    print_json,
    say,
    show,
    words,
    written,
)

app = typer.Typer()


@app.command("predict")
def predict_command(
    run: Run,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="VIDEO|FOLDER|IMAGE...", help="Videos, pictures, and folders of them.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the results; default RUN/predict/NAME.")] = None,
    fps: Annotated[float, typer.Option(min=0.01, help="Scored frames per second of video.")] = 5.0,
    every_frame: Annotated[bool, typer.Option("--every-frame", help="Score every frame.")] = False,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Most scored frames a file, spread evenly.")] = None,
    threshold: Annotated[float, typer.Option(help="Probability from which something is called fake.")] = 0.5,
    top_k: Annotated[int, typer.Option(min=1, help="Faces in prob_fake_top_k.")] = 5,
    annotated: Annotated[
        bool, typer.Option("--annotate/--no-annotate", help="Write copies with boxes, scores and a timeline.")
    ] = True,
    detector: Annotated[str, typer.Option(help="auto (as in training where known), mtcnn or retinaface.")] = "auto",
    weights: Annotated[Path | None, typer.Option(help="File with RetinaFace weights.")] = None,
    align: Annotated[str | None, typer.Option(help="How faces are cut; default as in training.")] = None,
    margin: Annotated[float | None, typer.Option(help="Of the cut; default as in training.")] = None,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    batch: Annotated[int | None, typer.Option(min=1, help="Crops per pass.")] = None,
    as_json: Json = False,
) -> None:
    """Score the faces of videos and pictures; writes tables, annotated copies and a page. A score is no proof."""
    from qadtrain.predict import predict
    from qadtrain.predict_output import prediction_tables

    with interruptible():
        summary = predict(
            run,
            inputs,
            out_dir=out,
            checkpoint=checkpoint,
            detector=detector,
            weights=weights,
            align=align,
            margin=margin,
            device=device,
            fps=fps,
            every_frame=every_frame,
            max_frames=max_frames,
            threshold=threshold,
            top_k=top_k,
            annotated=annotated,
            batch=batch,
            say=say,
        )
    console = console_beside(as_json)
    show(console, prediction_tables(summary.videos), summary.remarks)
    written(console, [summary.out_dir / "report.html"])
    if as_json:
        print_json(summary.as_json())
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


@app.command("export")
def export_command(
    run: Run,
    out: Annotated[Path, typer.Option("--out", help="Folder of the exported files.")],
    formats: Annotated[list[str] | None, typer.Option("--format", help="onnx or torch; repeatable.")] = None,
    checkpoint: Checkpoint = "best",
    opset: Annotated[int | None, typer.Option(help="Version of ONNX's operators; default 18.")] = None,
    as_json: Json = False,
) -> None:
    """The detector as ONNX or torch.export, checked against PyTorch, with an example that needs no torch."""
    from qadtrain.export import export_lines, export_run

    with interruptible():
        contents = export_run(run, out, formats=words(formats or ["onnx"]), checkpoint=checkpoint, opset=opset)
    show(console_beside(as_json), (), export_lines(contents, out))
    if as_json:
        print_json(contents)
    end_with(f"{name}: {reason}" for name, reason in contents["failed"].items())


@app.command("push")
def push_command(
    run: Run,
    out: Annotated[Path, typer.Option("--out", help="Folder that is written, as the hub expects it.")],
    name: Annotated[str, typer.Option(help="Of the model in its card; default the run's.")] = "",
    dataset: Annotated[
        list[str] | None, typer.Option(help="What the run was trained on, where it does not say.")
    ] = None,
    with_onnx: Annotated[bool, typer.Option("--with-onnx", help="Also export into onnx/.")] = False,
    checkpoint: Checkpoint = "best",
    upload: Annotated[bool, typer.Option("--upload", help="Upload the folder to --repo.")] = False,
    repo: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Repository on the hub.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Everybody may see it; default the owner alone.")] = False,
    as_json: Json = False,
) -> None:
    """A Hugging Face style folder: weights, configuration, model card. Nothing is uploaded without --upload."""
    from qadprep.errors import UserError
    from qadtrain.push import upload as send
    from qadtrain.push import write_model_folder

    if upload and repo is None:
        raise UserError("--upload: got no repository, expected --repo OWNER/NAME")
    if (repo or public) and not upload:
        raise UserError(f"{'--repo' if repo else '--public'}: got it without --upload, expected both")
    with interruptible():
        folder = write_model_folder(
            run, out, checkpoint=checkpoint, name=name, datasets=words(dataset or ()), with_onnx=with_onnx
        )
        address = send(folder, repo, private=not public) if upload and repo else None
    console = console_beside(as_json)
    written(console, [folder])
    show(console, (), [f"uploaded: {address}"] if address else [])
    if as_json:
        print_json({"folder": str(folder), "uploaded": address})
