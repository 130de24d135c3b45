"""A small dataset in the FF++ layout, made on the spot; its fakes are stand-ins and every page says so."""

STAND_IN_NOTE = (
    "These are stand-ins made for a demonstration by image operations. They are not FaceForensics++ data, and "
    "no generative model made them: scores on them say that the pipeline works, not how well a detector finds "
    "deepfakes."
)

# Method folder (FF++'s name) -> what its stand-in really is. The order is FF++'s own.
RECIPES: dict[str, str] = {
    "Deepfakes": "the face of the source clip, warped by landmarks onto the target, through half its "
    "resolution, colour-matched in Lab and feather-blended",
    "Face2Face": "the target's own lower face, its mouth corners moved as the source's move, through 0.45 of "
    "its resolution and feather-blended",
    "FaceSwap": "the face of the source clip, warped by landmarks onto the target, through 0.4 of its "
    "resolution, matched only in its mean colour, with a nearly hard seam",
    "NeuralTextures": "only the mouth of the source clip, warped by landmarks onto the target, through 0.4 of "
    "its resolution, colour-matched and feather-blended",
    "FaceShifter": "the target's own face, shifted by about a pixel, through 0.55 of its resolution, with "
    "other colour statistics, feather-blended over itself",
}
METHODS: tuple[str, ...] = tuple(RECIPES)
# FF++ publishes no masks for FaceShifter, nor for originals.
METHODS_WITH_MASKS: tuple[str, ...] = tuple(name for name in METHODS if name != "FaceShifter")
