"""An auth driver that allows everything to everybody."""

from transom.contract.auth import Auth, AuthCapability, Decision, Identity, Request, Target


class Sample(Auth):
    """Who is asking is another driver's business (peer's, say); this one only says what they may."""

    name = "sample"
    api = 1
    capabilities = frozenset({AuthCapability.AUTHORIZE})

    def authorize(self, identity: Identity, action: str, target: Target, request: Request) -> Decision:
        """Allow it; a refusal would have a `reason`, which is shown to who is refused."""
        return Decision(allow=True)
