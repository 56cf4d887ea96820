"""The flags, and what each means in a sentence: docs/flags.md has when it is raised, and what to do."""

MEANINGS = {
    "black-box-beats-white-box": "An attack without gradients broke images that gradient attacks had left: the true figure is lower.",
    "transfer-beats-white-box": "Points found on another model broke images that attacks on this one had left: it hides its gradient.",
    "more-steps-help": "The last doubling of steps still took images: the figure is one of effort, and more of it would lower it.",
    "large-radius-holds": "Images hold in a ball that covers the whole pixel range, where none can: the attack does not follow the model.",
    "one-step-beats-many": "One step broke more than twenty did: the loss surface is shattered along the way.",
    "noise-as-strong": "Random noise broke almost as much as the gradient did: the model is fragile, or its gradient little better.",
    "vanishing-gradient": "The gradient is exactly zero at many images: an attack on the cross-entropy stands still there.",
    "gradient-overflows": "The gradient is not finite at many images: an attack that follows it stands still there.",
    "wrong-gradient": "The gradient is not the derivative of what the model computes.",
    "adjoint-disagrees": "The adjoint gradient of the ODE is another than the exact one: whoever attacks through it follows noise.",
    "too-few-draws": "The model is random and the averaged gradients are mostly noise: the figure is that of a random walk.",
    "batch-dependent": "The prediction of an image depends on the images beside it: the figure is one of these batches.",
    "probabilities": "The model returns probabilities where logits are expected: their cross-entropy hardly has a gradient.",
    "gradient-masked": "Its naive gradient reports robustness that is not there; the column masked says how much.",
    "stiff-solve": "The solver's steps are too long for this flow: what is reported is a function of the steps and not of the ODE.",
    "class-not-answered": "Some classes are hardly ever answered, which is hard to attack and easy to take for robustness.",
    "at-chance": "The model reads no more of the images than a constant answer or shuffled labels would.",
    "more-outputs-than-classes": "The model answers classes that the data do not have: it was made for others.",
}
