"""Create PostgreSQL's roles and grant their rights: see tasks/stores/roles.py, which `nightjar migrate` also calls.

Unlike columns, rights do not depend on when they are granted, so this migration does not define them itself.
"""

from alembic import op

from tasks.stores.roles import grant_roles, revoke_roles

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        grant_roles(op.get_bind())


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        revoke_roles(op.get_bind())
