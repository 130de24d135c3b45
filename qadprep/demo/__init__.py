"""A small dataset in the FaceForensics++ layout, made on the spot; its fakes are stand-ins and every page says so."""

STAND_IN_NOTE = (
    "These are stand-ins made for a demonstration by image operations. They are not FaceForensics++ data, and no "
    "generative model made them: scores on them say that the pipeline works, not how well a detector finds deepfakes."
)

# Method folder (FF++'s name) -> what its stand-in really is. The order is FF++'s own.
RECIPES: dict[str, str] = {
    "Deepfakes": "the face of the source clip, through a 64 px bottleneck, warped by landmarks onto the target, "
    "colour-matched in Lab and feather-blended",
    "Face2Face": "the target's own lower face, its mouth moved as the source's mouth moves, resampled at half size "
    "and feather-blended",
    "FaceSwap": "the face of the source clip at 48 px, warped by landmarks onto the target inside a hull with a "
    "nearly hard seam, colours matched by their means only",
    "NeuralTextures": "only the mouth of the source clip, resampled, colour-matched and feather-blended onto the target",
    "FaceShifter": "the target's own face, shifted by about a pixel, resampled, with other colour statistics, blended "
    "over itself",
}
METHODS: tuple[str, ...] = tuple(RECIPES)
# FF++ publishes no masks for FaceShifter, nor for originals.
METHODS_WITH_MASKS: tuple[str, ...] = tuple(name for name in METHODS if name != "FaceShifter")
