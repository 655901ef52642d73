"""An auth driver that lets root do everything and others only look."""

from transom.contract.auth import Auth, AuthCapability, Decision, Identity, Request, Target


class LookOnly(Auth):
    """Who is asking is another driver's business (peer's, say); this one only says what they may."""

    name = "look-only"
    api = 1
    capabilities = frozenset({AuthCapability.AUTHORIZE})

    def authorize(self, identity: Identity, action: str, target: Target, request: Request) -> Decision:
        """Decide by the verb; the reason is shown to who is refused."""
        _, _, verb = action.partition(".")
        if identity.uid == 0 or verb in {"ls", "ps", "inspect", "logs", "stats", "info", "version"}:
            return Decision(allow=True)
        return Decision(allow=False, reason=f"{identity.name} may look but not {verb}; ask root")
