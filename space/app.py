"""The page as a Hugging Face Space, which shows it in a frame of its own site."""

from pcbridge.app.web.server import create_app, run

run(create_app("checkpoints/drug_like", frame_ancestors="https://huggingface.co"), host="0.0.0.0", port=7860)
