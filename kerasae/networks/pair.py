"""Whether an encoder and a decoder fit together."""

import keras

from kerasae import checks


def check_pair(encoder, decoder, num_codes=1, num_reconstructions=1):
    """Raises `ValueError` unless the two models fit together: code to code, and back to the first input's shape.

    Args:
        encoder: built Keras model. Of several inputs, in a list or a dict, the first is what is reconstructed.
        decoder: built Keras model. Its first input is the code; each further one is a condition, which has the name, shape and dtype of
            one of the encoder's side inputs and gets what that gets.
        num_codes: how many outputs the encoder has; the first is the code that the decoder takes.
        num_reconstructions: how many the decoder has, all of the first input's shape.

    Returns:
        `(encoder, decoder)`. Where one has a dict of inputs, the same layers with the inputs in a list, in the dict's order.
    """
    for model, name in ((encoder, "encoder"), (decoder, "decoder")):
        if not isinstance(model, keras.Model):
            raise ValueError(f"`{name}` must be a Keras model. Received: {model!r}")
        if not getattr(model, "inputs", None):
            raise ValueError(
                f"`{name}` must know its shapes: a Functional model, or a Sequential one that begins with keras.Input. "
                f"Received: {model!r}"
            )
    encoder, decoder = _with_inputs_in_a_list(encoder, "encoder"), _with_inputs_in_a_list(decoder, "decoder")
    if len(encoder.outputs) != num_codes:
        raise ValueError(
            f"`encoder` must have {num_codes} output(s). Received {len(encoder.outputs)}: {encoder.outputs}"
        )
    if len(decoder.outputs) != num_reconstructions:
        raise ValueError(
            f"`decoder` must have {num_reconstructions} output(s). Received {len(decoder.outputs)}: {decoder.outputs}"
        )
    code, code_in = encoder.outputs[0].shape[1:], decoder.inputs[0].shape[1:]
    if not checks.shapes_match(code, code_in):
        raise ValueError(
            f"`encoder` and `decoder` don't fit: the encoder gives codes of shape {code}, the decoder takes {code_in}."
        )
    x = encoder.inputs[0].shape[1:]
    for output in decoder.outputs:
        if not checks.shapes_match(x, output.shape[1:]):
            raise ValueError(
                f"`encoder` and `decoder` don't fit: the encoder takes examples of shape {x}, the decoder gives {output.shape[1:]}."
                + (" Of several inputs, the first is reconstructed." if len(encoder.inputs) > 1 else "")
            )
    side_inputs = {tensor.name: tensor for tensor in encoder.inputs[1:]}
    for condition in decoder.inputs[1:]:
        source = side_inputs.get(condition.name)
        if source is None:
            raise ValueError(
                f"`decoder` takes {condition.name!r} besides the code. A condition must have the name of one of the encoder's side "
                f"inputs: {list(side_inputs) or 'there are none'}. Name it in keras.Input(..., name=...)."
            )
        if source.shape != condition.shape or source.dtype != condition.dtype:
            raise ValueError(
                f"The decoder's condition {condition.name!r} must be what the encoder takes by that name, of shape {source.shape} and "
                f"dtype {source.dtype}. Received shape {condition.shape} and dtype {condition.dtype}."
            )
    return encoder, decoder


def _with_inputs_in_a_list(model, name):
    """A model whose `inputs` are in its author's order: of a dict Keras sorts them by name."""
    if len(model.inputs) == 1:
        return model
    structure = model.input
    tensors = list(structure.values() if isinstance(structure, dict) else structure)
    if not all(isinstance(tensor, keras.KerasTensor) for tensor in tensors):
        raise ValueError(
            f"`{name}` must have its inputs in a list or a dict, without others inside. Received: {structure}"
        )
    return keras.Model(tensors, model.output, name=model.name) if isinstance(structure, dict) else model
