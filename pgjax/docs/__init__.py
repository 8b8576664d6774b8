"""The documentation site, which `pgjax docs` builds and serves.

Its sources are in the package, so that whoever has installed pgjax can build and read the documentation of exactly that
version, without a network: `pages` in Markdown, `examples`, complete programs that pages show and tests run, and
`mkdocs.yml`. Read `equations` (LaTeX as MathML), `excerpts` (what a page takes from the code, from presets and from
results), `generated` (pages that are made of nothing else), `hooks` (where MkDocs asks for them), `site` (building and
serving).
"""
