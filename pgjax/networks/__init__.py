"""Policies and values.

Read `distributions` (what a policy is), `network` (the interface), then how ours are built: `torsos` (features),
`heads` (policy and value from features), `feedforward` (MLP, CNN, Custom), `critic` (action values), `recurrent` (GRU),
`decoder` (blocks of attention), `transformer` (over episodes or text), `families` (the language models it can be),
`pretrained` (their Hugging Face folders), `registry` (networks as parts).
"""
