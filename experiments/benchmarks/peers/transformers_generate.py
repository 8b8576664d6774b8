"""Sampling with transformers: tokens decoded per second.

    pip install torch==2.13.0 transformers
    python transformers_generate.py --width 256 --layers 4 --heads 4 --vocab 1024 --batch 64 --prompt-length 32 \\
        --response-length 64

An iteration samples a response to each of `batch` new prompts of one length, at temperature 1 from all tokens, with
`generate` and its cache of keys and values. `tokens` counts the responses' tokens. The clock covers the whole call,
the pass over the prompts included. Float32.
"""

import time

from llama import llama, parse, parser, report, torch
from transformers import LlamaForCausalLM  # type: ignore[import-not-found,unused-ignore]


def main() -> None:
    args = parse(parser(__doc__, warmup=1))
    model = LlamaForCausalLM(llama(args)).eval()

    def sample(iterations: int) -> None:
        for _ in range(iterations):
            prompts = torch.randint(args.vocab, (args.batch, args.prompt_length))
            sequences = model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=args.response_length,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                use_cache=True,
            )
            assert sequences.shape == (args.batch, args.prompt_length + args.response_length)

    sample(args.warmup)
    for repetition in range(args.repetitions):
        start = time.perf_counter()
        sample(args.iterations)
        seconds = time.perf_counter() - start
        report("transformers_generate", args, repetition, seconds, {"tokens": args.batch * args.response_length})


if __name__ == "__main__":
    main()
