import pytest

from keras_plasticity.experiments import figures


@pytest.mark.parametrize("number", [1, 20, 44, 100])
def test_the_legend_lies_within_the_figure(number):
    matplotlib_figure = pytest.importorskip("matplotlib.figure")
    figure = matplotlib_figure.Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for i in range(number):
        axes.plot([0, 1], [i, i], label=f"a_method_of_thirty_characters_{i}")
    figures._add_legend(figure, axes)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    inside, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= inside.x0 and inside.x1 <= whole.x1
    assert whole.y0 <= inside.y0 and inside.y1 <= whole.y1
    # Most of the width is for the curves.
    assert axes.get_window_extent().width > 0.3 * whole.width
