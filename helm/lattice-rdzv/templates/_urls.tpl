{{/* The URLs on which etcd listens, those that it advertises, and the endpoints of agents. */}}

{{- define "lattice.clientScheme" -}}{{ ternary "https" "http" .Values.tls.client.enabled }}{{- end -}}
{{- define "lattice.peerScheme" -}}{{ ternary "https" "http" .Values.tls.peer.enabled }}{{- end -}}

{{/* (dict "root" . "service" "lattice-rdzv-client") */}}
{{- define "lattice.host" -}}
{{- printf "%s.%s.svc.%s" .service .root.Release.Namespace .root.Values.clusterDomain -}}
{{- end -}}

{{/*
The name of a Service for agents. With TLS, it includes the cluster's domain, because the documented certificates contain that name. Without
TLS, it omits the domain, so that it also resolves if the domain differs from the one in the values. (dict "root" . "service" "lattice-rdzv-client")
*/}}
{{- define "lattice.agentHost" -}}
{{- if .root.Values.tls.client.enabled -}}{{- include "lattice.host" . -}}{{- else -}}{{- printf "%s.%s.svc" .service .root.Release.Namespace -}}{{- end -}}
{{- end -}}

{{- define "lattice.clientHost" -}}{{- include "lattice.host" (dict "root" . "service" .Values.clientService.name) -}}{{- end -}}

{{/* (dict "root" . "member" "lattice-rdzv-0") */}}
{{- define "lattice.memberHost" -}}
{{- printf "%s.%s" .member (include "lattice.host" (dict "root" .root "service" (include "lattice.membersService" .root))) -}}
{{- end -}}

{{/* The Services can use two different client ports of etcd. etcd then listens on both. */}}
{{- define "lattice.listenClientURLs" -}}
{{- $scheme := include "lattice.clientScheme" . -}}
{{- $ports := list (int .Values.clientService.internalPort) (int .Values.serverService.clientPort.internalPort) | uniq -}}
{{- $urls := list -}}
{{- range $ports -}}{{- $urls = append $urls (printf "%s://0.0.0.0:%d" $scheme .) -}}{{- end -}}
{{- if and .Values.auth.enabled .Values.tls.client.enabled -}}
{{- $urls = append $urls (printf "http://127.0.0.1:%d" (int .Values.auth.loopbackPort)) -}}
{{- end -}}
{{- join "," $urls -}}
{{- end -}}

{{- define "lattice.advertiseClientURL" -}}
{{- $scheme := include "lattice.clientScheme" . -}}
{{- if include "lattice.stateful" . -}}
{{- printf "%s://%s:%d" $scheme (include "lattice.memberHost" (dict "root" . "member" "$(POD_NAME)")) (int .Values.clientService.internalPort) -}}
{{- else -}}
{{- printf "%s://%s:%d" $scheme (include "lattice.host" (dict "root" . "service" .Values.serverService.name)) (int .Values.serverService.clientPort.externalPort) -}}
{{- end -}}
{{- end -}}

{{/*
Up to 3.5, etcd also serves the whole client API on the peer port, without requiring a certificate or a password. A single member has no
peers, so the port is not reachable from outside the pod.
*/}}
{{- define "lattice.listenPeerURL" -}}
{{- printf "%s://%s:%d" (include "lattice.peerScheme" .) (ternary "0.0.0.0" "127.0.0.1" (eq (include "lattice.several" .) "true")) (int .Values.serverService.serverPort.internalPort) -}}
{{- end -}}

{{/*
The URL under which peers reach a member. A single member has no peers, so any URL works that resolves before DNS does, because some
releases of etcd resolve it before they start. The pod's address does not work: IPv6 needs brackets, and releases of etcd that were
built with newer Go do not start with IPv4 in brackets. `localhost` does not work either: if it is set explicitly, etcd replaces this
default by the address of the machine's default route, and then does not find itself in `--initial-cluster`.
*/}}
{{- define "lattice.advertisePeerURL" -}}
{{- $host := "127.0.0.1" -}}
{{- if include "lattice.several" . -}}{{- $host = include "lattice.memberHost" (dict "root" . "member" "$(POD_NAME)") -}}{{- end -}}
{{- printf "%s://%s:%d" (include "lattice.peerScheme" .) $host (int .Values.serverService.serverPort.internalPort) -}}
{{- end -}}

{{- define "lattice.initialCluster" -}}
{{- if include "lattice.several" . -}}
{{- $members := list -}}
{{- range $index := until (int .Values.replicaCount) -}}
{{- $name := printf "%s-%d" (include "lattice.name" $) $index -}}
{{- $members = append $members (printf "%s=%s://%s:%d" $name (include "lattice.peerScheme" $) (include "lattice.memberHost" (dict "root" $ "member" $name)) (int $.Values.serverService.serverPort.internalPort)) -}}
{{- end -}}
{{- join "," $members -}}
{{- else -}}
{{- printf "$(POD_NAME)=%s" (include "lattice.advertisePeerURL" .) -}}
{{- end -}}
{{- end -}}

{{/* The endpoints for agents: one for each member, so that agents can fail over to the next one. */}}
{{- define "lattice.endpoints" -}}
{{- if include "lattice.external" . -}}
{{- join "," .Values.external.endpoints -}}
{{- else if include "lattice.several" . -}}
{{- $endpoints := list -}}
{{- range $index := until (int .Values.replicaCount) -}}
{{- $host := printf "%s-%d.%s" (include "lattice.name" $) $index (include "lattice.agentHost" (dict "root" $ "service" (include "lattice.membersService" $))) -}}
{{- $endpoints = append $endpoints (printf "%s://%s:%d" (include "lattice.clientScheme" $) $host (int $.Values.clientService.internalPort)) -}}
{{- end -}}
{{- join "," $endpoints -}}
{{- else -}}
{{- printf "%s://%s:%d" (include "lattice.clientScheme" .) (include "lattice.agentHost" (dict "root" . "service" .Values.clientService.name)) (int .Values.clientService.externalPort) -}}
{{- end -}}
{{- end -}}
