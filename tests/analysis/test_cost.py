"""Costs read from a program's text: here one by hand; test_plans.py has those of the compiler."""

import pytest

from xception_flax.analysis import cost

TEXT = """\
HloModule jit_train_step, is_scheduled=true

%fused.1 (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %conv = bf16[8,4]{1,0} convolution(%p, %p), window={size=3x3}
}

%fused.2 (q: f32[8,4]) -> f32[4] {
  %q = f32[8,4]{1,0} parameter(0)
  %copy.9 = f32[8,4]{1,0} copy(%q)
  ROOT %sum = f32[4]{0} reduce(%copy.9), dimensions={0}
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  ROOT %f.1 = f32[4]{0} fusion(%state), kind=kLoop, calls=%fused.2, \
metadata={op_name="jit(train_step)/while/body/transpose(jvp(Xception))/exit_flow/block1/bn/mul"}, \
backend_config={"estimated_cycles":"7"}
}

ENTRY %main (a: bf16[8,4]) -> f32[4] {
  %a = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %f.2 = bf16[8,4]{1,0} fusion(%a), kind=kOutput, calls=%fused.1, \
metadata={op_name="jit(train_step)/jvp(Xception)/middle_flow/block3/sepconv1/conv"}, \
backend_config={"estimated_cycles":"100"}
  %pool = bf16[8,4]{1,0} reduce-window(%f.2), \
metadata={op_name="jit(train_step)/jvp(Xception)/entry_flow/block1/reduce_window_max"}, \
backend_config={"estimated_cycles":"20"}
  %w = (s32[], f32[4]{0}) while(%a), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %r = (f32[8]{0}, f32[32]{0:T(128)S(1)}) all-gather-start(%a), dimensions={0}
  %rd = f32[32]{0} all-gather-done(%r)
  %s = (f32[32]{0:T(128)S(1)}, bf16[2,3]{1,0}) all-reduce(%a, %w), to_apply=%add
  ROOT %u = f32[4]{0} copy(%w), metadata={op_name="jit(train_step)/mul"}, \
backend_config={"estimated_cycles":"5"}
}
"""


def test_cycles_are_summed_by_stage_and_kind_and_loops_count_once():
    assert dict(cost.Text(TEXT).cycles) == {
        ('middle_flow', 'convolution'): 100,
        ('entry_flow/block1', 'pooling'): 20,
        ('exit_flow/block1', 'sum'): 7,
        ('update', 'copy'): 5,
    }


def test_a_collective_counts_once_with_the_bytes_of_its_result():
    assert dict(cost.Text(TEXT).collectives) == {
        'all-reduce': 32 * 4 + 6 * 2,
        'all-gather': 32 * 4,
    }


@pytest.mark.parametrize(
    ('name', 'stage'),
    [
        ('jit(train_step)/jvp(Xception)/entry_flow/block2/shortcut/bn/mul', 'entry_flow/block2'),
        ('jit(train_step)/transpose(jvp(Xception))/middle_flow/block8/add', 'middle_flow'),
        ('jit(train_step)/jvp(InceptionV3)/mixed3/branch_1/conv', 'mixed3'),
        ('jit(eval_step)/Xception/exit_flow/sepconv4/pointwise/dot', 'exit_flow/sepconv4'),
        ('jit(train_step)/jvp(Xception)/logits/dot_general', 'logits'),
        ('jit(train_step)/jvp(Xception)/Xception.head/logits/dot_general', 'logits'),
        (
            'jit(train_step)/transpose(jvp(Xception))/Xception.features/exit_flow/block1/add',
            'exit_flow/block1',
        ),
        ('jit(train_step)/jvp(Xception)/entry_flow/jit(relu)/max', 'entry_flow'),
        ('jit(train_step)/jvp(Xception)/reduce_sum', 'rest'),
        ('jit(train_step)/sub', 'update'),
        ('', 'rest'),
    ],
)
def test_the_stage_of_an_operation_is_in_its_name(name, stage):
    assert cost.stage(name) == stage
