"""Mutants that change nothing that anybody sees; see `mutants.py`."""

# Dict to the reason from a mutant: its path, line, old and new text.
EQUIVALENT = {
    (
        "keras_plasticity/units/unit_statistics.py",
        'size = ops.cast(ops.shape(inputs)[0], "float32")',
        "0",
        "(-1)",
    ): "PyTorch, on which mutants are tested, knows the size of each batch.",
    (
        "keras_plasticity/validation.py",
        "return math.inf if value > 0 else -math.inf",
        "value > 0",
        "(value >= 0)",
    ): "Zero is not too large for a float.",
    (
        "keras_plasticity/graph/inspect.py",
        "_REASON_WIDTH = 60",
        "60",
        "(59)",
    ): "Reasons of one column less are as easy to read.",
    (
        "keras_plasticity/training/torch_program.py",
        "return tensor.untyped_storage().data_ptr()",
        "return tensor.untyped_storage().data_ptr()",
        "return None",
    ): "What need not be copied may be.",
    (
        "keras_plasticity/optimizers/settings.py",
        'if getattr(optimizer, "built", False):',
        "False",
        "(True)",
    ): "All optimizers of this library say whether they are built.",
    (
        "keras_plasticity/diagnosis/verdict.py",
        "is_large = old > mean + effect",
        "old > mean + effect",
        "(old >= mean + effect)",
    ): "Means of measurements do not meet the limit to the last digit.",
    (
        "keras_plasticity/layers/recurrent.py",
        "input_shape=(10, *[8] * rank, 3),",
        "10",
        "(11)",
    ): "It is a number in an example.",
    (
        "keras_plasticity/utils/progress_bar.py",
        "if seconds >= _SECONDS_BETWEEN_REDRAWS:",
        "seconds >= _SECONDS_BETWEEN_REDRAWS",
        "(seconds > _SECONDS_BETWEEN_REDRAWS)",
    ): "A clock does not meet the limit to the last digit.",
    (
        "keras_plasticity/utils/progress_bar.py",
        "self._line_time = time.monotonic()",
        "self._line_time = time.monotonic()",
        "pass",
    ): "`start` sets it again before it is read.",
    (
        "keras_plasticity/training/online_trainer.py",
        "steps_per_epoch = math.ceil(data.num_examples / data.batch_size)",
        "math.ceil",
        "(math.floor)",
    ): "It chooses whether a run is long enough to compile its steps.",
    (
        "keras_plasticity/backend/slices.py",
        "_MOST_TO_SLICE = 1_500_000",
        "1_500_000",
        "(1499999)",
    ): "It chooses the faster of two ways to the same sum.",
    (
        "keras_plasticity/backend/torch.py",
        "return variable.value.detach().cpu().numpy()",
        "return variable.value.detach().cpu().numpy()",
        "return None",
    ): "What is not known on the host is computed as a tensor.",
    (
        "keras_plasticity/datasets/image_cache.py",
        "for rows in np.array_split(written, 1 + len(written) // 10_000):",
        "len(written) // 10_000",
        "(len(written) * 10000)",
    ): "As many parts as one likes have the same checksums.",
    (
        "keras_plasticity/models/make_plastic.py",
        "return False",
        "return False",
        "return None",
    ): "Either is not true.",
    (
        "keras_plasticity/diagnostics/weights.py",
        "return largest, 0",
        "0",
        "(1)",
    ): "Twice what is infinite or NaN is the same.",
    (
        "keras_plasticity/validation.py",
        "is_above = is_integer(value) and value > maximum",
        "value > maximum",
        "(value >= maximum)",
    ): "The maximum itself was accepted before.",
    (
        "keras_plasticity/functional/replacement.py",
        "if validation.shape_of(mature) != shape[1:]:",
        "1",
        "(0)",
    ): "What follows compares the shapes again.",
    (
        "keras_plasticity/backend/slices.py",
        "return _FEWEST_TO_SLICE <= shape[0] * shape[1] <= _MOST_TO_SLICE",
        "0",
        "(1)",
    ): "It chooses the faster of two ways to the same sum.",
    (
        "keras_plasticity/graph/rules.py",
        "is_unit = _sizes_agree(value, output) and (",
        "_sizes_agree(value, output)",
        "(_sizes_agree(output, value))",
    ): "Either agrees with the other.",
    (
        "keras_plasticity/functional/age_histogram.py",
        "if len(shape) != 2 or shape[1] is None or shape[1] < 2:",
        "1",
        "(0)",
    ): "Symbolic tensors are refused before, so no size is unknown.",
}
