"""The paper's two explanations (sections 5.1 and 5.2): exact on small chains, and measured on trained models."""
