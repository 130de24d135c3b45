"""A small dataset in the FF++ layout, made on the spot; its fakes are stand-ins and every page says so."""

STAND_IN_NOTE = (
    "These are stand-ins made for a demonstration by image operations. They are not FaceForensics++ data, and "
    "no generative model made them: scores on them say that the pipeline works, not how well a detector finds "
    "deepfakes."
)

# How much of its resolution (both sides) the replaced part keeps: the blur that a generator's small output leaves.
RESOLUTION_SHARE: dict[str, float] = {
    "Deepfakes": 0.55,
    "Face2Face": 0.5,
    "FaceSwap": 0.45,
    "NeuralTextures": 0.45,
    "FaceShifter": 0.6,
}

# Method folder (FF++'s name) -> what its stand-in really is. The order is FF++'s own.
RECIPES: dict[str, str] = {
    "Deepfakes": "the face of the source clip, warped by landmarks onto the target, "
    f"through {RESOLUTION_SHARE['Deepfakes']} of its resolution, colour-matched in Lab and feather-blended",
    "Face2Face": "the target's own lower face, its mouth corners moved as the source's move, "
    f"through {RESOLUTION_SHARE['Face2Face']} of its resolution and feather-blended",
    "FaceSwap": "the face of the source clip, warped by landmarks onto the target, "
    f"through {RESOLUTION_SHARE['FaceSwap']} of its resolution, matched in mean colour only, with a nearly hard seam",
    "NeuralTextures": "only the mouth of the source clip, warped by landmarks onto the target, "
    f"through {RESOLUTION_SHARE['NeuralTextures']} of its resolution, colour-matched and feather-blended",
    "FaceShifter": "the target's own face, shifted by about a pixel, "
    f"through {RESOLUTION_SHARE['FaceShifter']} of its resolution, with other colour statistics, feather-blended",
}
METHODS: tuple[str, ...] = tuple(RECIPES)
# FF++ publishes no masks for FaceShifter, nor for originals.
METHODS_WITH_MASKS: tuple[str, ...] = tuple(name for name in METHODS if name != "FaceShifter")
